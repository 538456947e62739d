"""TextWorld as a world: which games there are in each split, and which words they hold."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from dagger_exp.envs.textworld.env import TextWorldEnv
from dagger_exp.envs.textworld.games import GameCache, GameSettings
from dagger_exp.envs.textworld.rendering import RENDERINGS, SHORT_WORDS, words
from dagger_exp.errors import ConfigError
from dagger_exp.types import Task

VALIDATION_SEED = 10_000_000
"""The first seed of the validation split. The others begin at 0, and are refused where they would reach it."""


class TextWorld:
    """Games of the Microsoft TextWorld engine, made on this machine from seeds.

    `coin_collector`: a chain of `quest_length` rooms, a coin in the last, and `num_rooms - quest_length` rooms
    more, as dead ends beside the chain (`simple`) or anywhere (`random`). `treasure_hunter`: take the right one of
    two objects, the wrong one loses; `medium` adds furniture that may be closed, `hard` also locked.

    `objective`: `hidden`; `goal`, what to do at last; `shown`, TextWorld's own text, which spells out the path.
    `rendering`: `short`, lower-case words that a whitespace split tells apart, written from the facts of the state
    (see `rendering.py`) and played by TextWorld's logic alone; `prose`, the text of a compiled game, which takes a
    second to make. `instruction` is a system message that opens every episode; none where it is empty.
    """

    name = "textworld"

    def __init__(
        self,
        *,
        cache_folder: str | Path,
        family: str = "coin_collector",
        mode: str = "simple",
        num_rooms: int = 12,
        quest_length: int = 6,
        objective: str = "hidden",
        rendering: str = "short",
        show_admissible_commands: bool = False,
        instruction: str = "",
        num_train_tasks: int = 300,
        num_validation_tasks: int = 0,
        num_heldout_tasks: int = 100,
        max_turns: int = 30,
        seed_offset: int = 0,
        num_workers: int = 2,
    ) -> None:
        """Make no game yet. Raises `ConfigError` for games that cannot be and where TextWorld is missing."""
        settings = GameSettings(family, mode, num_rooms, quest_length, objective, rendering)
        positive = (num_train_tasks, num_heldout_tasks, num_workers, max_turns)
        if min(*positive, num_validation_tasks + 1, seed_offset + 1) < 1:
            raise ConfigError(
                "TextWorld needs a train task, a held-out task, a worker, a turn, and env.num_validation_tasks and "
                "env.seed_offset of at least 0."
            )
        if num_validation_tasks and 2 * (seed_offset + max(num_train_tasks, num_heldout_tasks)) > VALIDATION_SEED:
            raise ConfigError(
                f"env.seed_offset leaves too few seeds below {VALIDATION_SEED}, where the validation games begin; "
                "lower it, or set env.num_validation_tasks=0."
            )
        self.max_turns = max_turns
        self._settings = settings
        self._games = GameCache(settings, cache_folder, num_workers)
        self._num_tasks = {
            "train": num_train_tasks,
            "heldout": num_heldout_tasks,
            "validation": num_validation_tasks,
        }
        self._seed_offset = seed_offset
        self._show_admissible_commands = show_admissible_commands
        self._instruction = instruction

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split; makes their games. Raises `ConfigError` and `EnvError`."""
        seeds = self._seeds(split)
        self._games.ensure(seeds)
        return tuple(Task(f"{self._settings.family}-{seed}", split, {"seed": seed}) for seed in seeds)

    def make(self, task: Task) -> TextWorldEnv:
        """Return a fresh env; makes the game if it is missing. Raises `EnvError`."""
        seed = task.data["seed"]
        self._games.ensure([seed])
        return TextWorldEnv(
            self._games.path(seed),
            RENDERINGS[self._settings.rendering],
            self._show_admissible_commands,
            self._instruction,
        )

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Need nothing."""
        return nullcontext()

    def vocabulary(self) -> Sequence[str]:
        """Return, sorted, every word of this world's messages over all its games; empty where they are prose.

        The games are read, not played: names, commands and objectives. Missing ones are made: see `tasks`.
        """
        if self._settings.rendering == "prose":
            return ()
        return tuple(sorted({*SHORT_WORDS, *words(self._instruction), *self._game_words()}))

    def _seeds(self, split: str) -> Sequence[int]:
        """Return every second seed: of the training even ones, held out odd ones, for validation high ones."""
        if split not in self._num_tasks:
            raise ConfigError(f"TextWorld has no split {split}; choose train, validation or heldout.")
        first = 2 * self._seed_offset + {"train": 0, "heldout": 1, "validation": VALIDATION_SEED}[split]
        return range(first, first + 2 * self._num_tasks[split], 2)

    def _game_words(self) -> Sequence[str]:
        seeds = [seed for split in self._num_tasks for seed in self._seeds(split)]
        counts = "-".join(map(str, (self._seed_offset, *self._num_tasks.values())))
        cached = self._games.folder / f"vocabulary-{counts}.json"
        if not cached.exists():
            self._games.ensure(seeds)
            _write_whole(cached, json.dumps(_scan(map(self._games.path, seeds))))
        return json.loads(cached.read_text())


def _scan(paths: Iterable[Path]) -> list[str]:
    from textworld import Game

    found: set[str] = set()
    for path in paths:
        game = Game.load(str(path))
        names = [info.name for info in game.infos.values() if info.name]
        verbs = [re.sub(r"{.*?}", "", template) for template in game.command_templates]
        found.update(word for text in (*names, *verbs, game.objective) for word in words(text))
    return sorted(found)


def _write_whole(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".making-", delete=False) as aside:
        aside.write(text)
    os.replace(aside.name, path)
