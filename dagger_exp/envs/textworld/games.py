"""Where do games come from? Made by TextWorld's own generators in spawned workers, kept in a cache on disk.

A game is a pure function of its settings, its seed and the version of TextWorld, and so is its place in the
cache (no hash of the file: the files are not byte-stable). Games are written aside and renamed, so that two runs
may share a cache.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dagger_exp.envs.textworld.rendering import RENDERINGS
from dagger_exp.errors import ConfigError, EnvError

logger = logging.getLogger(__name__)

FAMILIES = {"coin_collector": ("simple", "random"), "treasure_hunter": ("easy", "medium", "hard")}
OBJECTIVES = ("hidden", "goal", "shown")
MAKER_VERSION = 1
"""Part of a game's place in the cache: raise it when this file makes other games from the same settings."""


@dataclass(frozen=True, slots=True)
class GameSettings:
    """All that decides a game but its seed. Raises `ConfigError` where TextWorld cannot make such games."""

    family: str
    mode: str
    num_rooms: int
    quest_length: int
    objective: str
    rendering: str

    def __post_init__(self) -> None:
        _check_choice("family", self.family, FAMILIES)
        _check_choice("mode", self.mode, FAMILIES[self.family])
        _check_choice("objective", self.objective, OBJECTIVES)
        _check_choice("rendering", self.rendering, RENDERINGS)
        if not 1 <= self.quest_length <= self.num_rooms <= 100:
            raise ConfigError("TextWorld needs 1 <= env.quest_length <= env.num_rooms <= 100.")
        # With more rooms its generator looks for a free exit for ever: a room of the chain has two to spare.
        if self.mode == "simple" and self.num_rooms > 3 * self.quest_length:
            raise ConfigError("env.mode=simple needs env.num_rooms <= 3 * env.quest_length; random does not.")


def _check_choice(key: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(f"env.{key}={value} does not exist; choose one of {', '.join(choices)}.")


def textworld_version() -> str:
    """Return the installed version of TextWorld; raises `ConfigError` where there is none."""
    try:
        return importlib.metadata.version("textworld")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError("TextWorld games need `pip install dagger-exp[textworld]`.") from None


class GameCache:
    """The games of one kind of settings on disk; `ensure` makes those that are missing."""

    def __init__(self, settings: GameSettings, folder: str | Path, num_workers: int) -> None:
        key = {**asdict(settings), "textworld": textworld_version(), "maker": MAKER_VERSION}
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=6).hexdigest()
        self.folder = Path(folder).absolute() / f"{settings.family}-{digest}"
        self.settings = settings
        self.num_workers = num_workers

    def path(self, seed: int) -> Path:
        """Return the file to play; for prose that is the compiled game, with its .json beside it."""
        return self._description(seed).with_suffix(_suffix(self.settings))

    def _description(self, seed: int) -> Path:
        return self.folder / f"{seed}.json"

    def ensure(self, seeds: Sequence[int]) -> None:
        """Make the missing games of these seeds. Raises `EnvError` naming the seed that could not be made."""
        missing = [seed for seed in seeds if not self._description(seed).exists()]
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        num_workers = min(self.num_workers, len(missing))
        logger.info("making %d %s games in %d workers", len(missing), self.settings.family, num_workers)
        # Spawned, not forked: the parent may hold threads and an accelerator. And TextWorld has global state.
        context = get_context("spawn")
        with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_spare_the_compiler) as pool:
            futures = {pool.submit(make_game, self.settings, seed, self.folder): seed for seed in missing}
            for num_made, future in enumerate(as_completed(futures), start=1):
                _raise_failure(future, futures[future], pool)
                if num_made % 100 == 0 or num_made == len(missing):
                    logger.info("made %d of %d games", num_made, len(missing))


def _raise_failure(future: Future[None], seed: int, pool: ProcessPoolExecutor) -> None:
    error = future.exception()
    if error is not None:
        pool.shutdown(wait=False, cancel_futures=True)
        raise EnvError(f"TextWorld could not make the game of seed {seed}: {error!r}") from error


def _suffix(settings: GameSettings) -> str:
    return ".z8" if settings.rendering == "prose" else ".json"


def _spare_the_compiler() -> None:
    """Let the generators of this process replay their walkthrough in TextWorld's logic, not in a compiled game.

    That compile takes a second, many times what the rest takes, and the game is the same without it.
    """
    import textworld

    def compile_nothing(self: Any, path: str) -> str:
        description = Path(path).with_suffix(".json")
        self.build().save(str(description))
        return str(description)

    textworld.GameMaker.compile = compile_nothing


def make_game(settings: GameSettings, seed: int, folder: Path) -> None:
    """Make one game and move it whole to its place in the folder; runs in a worker."""
    from textworld.generator import compile_game

    game = _generate(settings, seed)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as aside:
        description = Path(aside) / f"{seed}.json"
        if settings.rendering == "prose":
            options = _options(settings, seed)
            options.path = str(description.with_suffix(".z8"))
            compile_game(game, options)
            os.replace(options.path, folder / f"{seed}.z8")
        else:
            game.save(str(description))
        os.replace(description, folder / description.name)  # The last: it says that the game is there.


def _generate(settings: GameSettings, seed: int) -> Any:
    challenge = _challenge(settings.family)
    game = challenge.make_game(settings.mode, _options(settings, seed))
    # TextWorld copies a game's metadata into every state, and the walkthrough with it.
    game.metadata.pop("walkthrough", None)
    if settings.objective == "hidden":
        game.objective = ""
    return game


def _challenge(family: str) -> Any:
    return importlib.import_module(f"textworld.challenges.tw_{family}.{family}")


@functools.cache
def _knowledge_base(family: str) -> Any:
    """Return the rules and the grammar of a family; parsing them is most of the time that a game takes.

    The files are read in sorted order: in TextWorld's own, that of the file system, games might differ.
    """
    from textworld.generator.data import KnowledgeBase
    from textworld.logic import GameLogic

    folder = Path(_challenge(family).KB_PATH)
    logic = GameLogic.load(sorted(map(str, folder.glob("logic/*.twl"))))
    return KnowledgeBase(logic, str(folder / "text_grammars"))


def _options(settings: GameSettings, seed: int) -> Any:
    from textworld import GameOptions

    options = GameOptions()
    options.kb = _knowledge_base(settings.family)
    options.nb_rooms = settings.num_rooms
    options.quest_length = settings.quest_length
    options.grammar.allowed_variables_numbering = True
    options.grammar.only_last_action = settings.objective == "goal"
    # Given one integer, TextWorld would draw its four seeds from 65,635 numbers: games would share maps.
    options.seeds = {part: 4 * seed + i for i, part in enumerate(("map", "objects", "quest", "grammar"))}
    return options
