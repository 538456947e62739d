"""Is this run legal? Its values against the schema, its components against their constructors, its choices together."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from dagger_exp.config.binding import bind
from dagger_exp.config.mistakes import CONF_FOLDER, said_in_one_sentence, unknown
from dagger_exp.config.schema import CollectConfig, RunConfig, register_schema
from dagger_exp.data.selection import EpisodeFilter
from dagger_exp.errors import ConfigError
from dagger_exp.rollout.labeler import Labeler


def compose_checked(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose a config as Hydra would, without making a run folder.

    Raises:
        ConfigError: one sentence that names the key and, where one is near, what was probably meant.
    """
    register_schema()
    GlobalHydra.instance().clear()
    with said_in_one_sentence(config_name, overrides), initialize_config_dir(CONF_FOLDER, version_base="1.3"):
        return compose(config_name, overrides)


def load_checked(folder: Path) -> DictConfig:
    """Return the config that a run has saved.

    Raises:
        ConfigError: there is no run in that folder, or its config cannot be read.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"resume={folder} is not a run folder: it has no .hydra/config.yaml.")
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"{path} cannot be read; restore it, or start a new run.") from error
    assert isinstance(cfg, DictConfig)
    return cfg


WITH_ENV = ("scaffold", "sandbox")
AS_IN_RUN = ("env", *WITH_ENV, "rollout", "evaluation", "student.max_context_tokens")
"""What an evaluation takes from the run that made the student; another env has its own scaffold and sandbox."""
BUNDLES = ("experiment", "debug")
"""Files that set some of it, which an evaluation could not tell from what stands by default."""


def as_in_run(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> DictConfig:
    """Return a config with the env, lengths and tasks of a run, but for what was typed.

    Args:
        cfg: of the evaluation.
        folder: of the run.
        overrides: as they were typed; a choice of `env` leaves nothing of the run's.

    Raises:
        ConfigError: the run's config cannot be read, or a bundle was typed.
    """
    theirs = load_checked(folder)
    typed = {override.partition("=")[0].lstrip("+") for override in overrides}
    if bundles := typed & set(BUNDLES):
        raise ConfigError(
            f"{min(bundles)}=... sets an env and lengths, which an evaluation takes from its student's run; leave it "
            "out, or name what shall differ, as in env=textworld evaluation.tasks=20."
        )
    merged = OmegaConf.create(OmegaConf.to_container(cfg))  # free of the schema, which takes no whole nodes
    for key in AS_IN_RUN:
        if key not in typed and not (key in WITH_ENV and "env" in typed):
            node = OmegaConf.select(theirs, key)
            if key == "rollout":  # what is younger than the run keeps its default
                node = OmegaConf.merge(cfg.rollout, node)
            OmegaConf.update(merged, key, node, merge=False)
    for name in typed - set(AS_IN_RUN):
        if name.startswith(tuple(f"{key}." for key in AS_IN_RUN)):
            OmegaConf.update(merged, name, OmegaConf.select(cfg, name))
    assert isinstance(merged, DictConfig)
    return merged


def check(cfg: DictConfig, command: str = "train") -> None:
    """Refuse values and choices that make no sense for a command, then bind every component to its constructor.

    Raises:
        ConfigError: says what to change.
    """
    schema = OmegaConf.structured(CollectConfig if command == "collect" else RunConfig)
    with said_in_one_sentence(command, []):
        typed = OmegaConf.merge(schema, cfg)
    assert isinstance(typed, DictConfig)
    _check_values(typed, "", command)
    Labeler(**typed.labeler)  # this and the next check their values themselves
    EpisodeFilter(**typed.filter)
    _check_key_names(typed)
    _check_addresses(typed)
    _check_lengths(typed)
    _check_mixing(typed)
    if command == "train" and typed.labeler.turns == "none":
        raise ConfigError(
            "labeler.turns=none leaves nothing to train on; choose labeler.turns=all, or use dagger-collect."
        )
    if command != "evaluate":
        _check_budget(typed)
    elif not (typed.student.get("init") or typed.student.get("path")):
        raise ConfigError("dagger-evaluate needs a student; name one, as in student.init=outputs/runs/FOLDER.")
    if command == "collect" and typed.store is not None and typed.demonstrations.get("_target_") is not None:
        raise ConfigError(
            "demonstrations make round 0, which the store has already; leave out store or demonstrations."
        )
    if command == "train":
        _check_training(typed)
    if OmegaConf.select(typed, "demonstrations.files", default="none") in (None, "", []):
        raise ConfigError("demonstrations.files is empty; name a file, as in demonstrations.files=[FILE].")
    bind(typed)


def _check_values(node: DictConfig, path: str, command: str) -> None:
    schema: Any = OmegaConf.get_type(node)
    known = [field.name for field in dataclasses.fields(schema)]
    for key in node.keys() - known:
        raise ConfigError(unknown(f"{path}{key}", [f"{path}{name}" for name in known], command))
    for field in dataclasses.fields(schema):
        name = f"{path}{field.name}"
        with said_in_one_sentence(command, [], key=name):
            value = node[field.name]
        if dataclasses.is_dataclass(OmegaConf.get_type(value)):
            _check_values(value, f"{name}.", command)
        elif OmegaConf.is_dict(value):
            _check_given(value, name, command)
        elif value is not None and field.metadata and not field.metadata["holds"](value):
            raise ConfigError(f"{name} is {value}; it must be {field.metadata['wanted']}.")


def _check_given(node: Any, path: str, command: str) -> None:
    """Look at every value of a component, so that a missing or unresolvable one is named."""
    for key in node:
        with said_in_one_sentence(command, [], key=f"{path}.{key}"):
            value = node[key]
        if OmegaConf.is_dict(value):
            _check_given(value, f"{path}.{key}", command)


KEY = re.compile(r"(?i)api[_-]?key|secret|password|authorization|token$")
"""Names of what is secret."""


def _check_key_names(cfg: DictConfig) -> None:
    """Refuse what may be a key itself where the name of its variable belongs, before it is written anywhere."""
    for path in ("teacher.endpoint.api_key_env", "engine.endpoint.api_key_env"):
        name = OmegaConf.select(cfg, path)
        if name is not None and not (re.fullmatch("[A-Z][A-Z0-9_]*", str(name)) or str(name) in os.environ):
            raise ConfigError(
                f"{path} is the name of the variable that holds the key, as OPENAI_API_KEY; what it is set to is no "
                "variable here, and not shown, since it may be the key itself."
            )
    for path in ("teacher.request", "engine.server.environment", "engine.server.arguments"):
        given = OmegaConf.select(cfg, path)
        options = map(str, given) if OmegaConf.is_dict(given) or OmegaConf.is_list(given) else ()
        names = [option.partition("=")[0] for option in options if OmegaConf.is_dict(given) or option.startswith("--")]
        if found := next(filter(KEY.search, names), None):
            raise ConfigError(
                f"{path} has {found}, and what a config holds is written down: leave it out, set the key in your "
                "shell, whose variables a server inherits, and name its variable in api_key_env."
            )


def _check_addresses(cfg: DictConfig) -> None:
    """Refuse an address that holds a password, before it is written anywhere."""
    one, several = OmegaConf.select(cfg, "teacher.endpoint.address"), OmegaConf.select(cfg, "engine.addresses")
    if several is not None and not OmegaConf.is_list(several):
        raise ConfigError("engine.addresses is a list; write it as [http://HOST:PORT].")
    for path, address in [("teacher.endpoint.address", one), *(("engine.addresses", each) for each in several or ())]:
        if any(mark in str(address) for mark in "@?"):
            raise ConfigError(
                f"{path} holds a name, a password or a query, which is not shown; leave it out, and put the key into "
                "the variable that api_key_env names."
            )


def _check_lengths(cfg: DictConfig) -> None:
    longest, context = cfg.rollout.max_new_tokens, cfg.student.get("max_context_tokens")
    if type(context) is int and longest >= context:
        raise ConfigError(
            f"rollout.max_new_tokens={longest} leaves no room for a prompt in student.max_context_tokens={context}; "
            "lower the one or raise the other."
        )


def _check_mixing(cfg: DictConfig) -> None:
    mixing = str(cfg.mixing.get("_target_")).rsplit(".", 1)[-1]
    choice = {"SwitchMixture": "switch", "StudentOnly": "student", "TeacherOnly": "teacher"}.get(mixing, mixing)
    has_schedule = cfg.schedule.get("_target_") is not None
    if cfg.name == "sft" and mixing != "TeacherOnly":
        raise ConfigError("method=sft trains on the teacher's own episodes; remove the mixing or choose method=dagger.")
    if mixing == "TurnMixture" and not has_schedule:
        raise ConfigError("mixing=turn needs a beta; choose a schedule, as in schedule=linear.")
    if mixing != "TurnMixture" and has_schedule:
        raise ConfigError(f"mixing={choice} has no beta, but a schedule is set; add schedule=none or keep mixing=turn.")
    if mixing == "TeacherOnly" and cfg.labeler.turns == "student":
        raise ConfigError(
            "the teacher acts at every turn, but labeler.turns=student labels the student's; use labeler.turns=all."
        )
    _check_ramps(cfg)
    is_played = cfg.demonstrations.get("_target_") is None
    if cfg.labeler.turns == "student" and is_played and _teacher_acts_alone_first(cfg):
        raise ConfigError(
            "labeler.turns=student finds no turn of the student in round 0; lower schedule.start, or raise "
            "mixing.t_max.start."
        )


def _check_ramps(cfg: DictConfig) -> None:
    if cfg.mixing.get("teacher_first") and (OmegaConf.select(cfg, "mixing.t_max.step") or 0) > 0:
        raise ConfigError(
            "mixing.teacher_first with a growing mixing.t_max leaves ever more to the teacher; "
            "choose mixing=switch_teacher_first."
        )
    if OmegaConf.select(cfg, "mixing.max_turns.start") == 0:
        raise ConfigError("mixing.max_turns.start is 0, which leaves round 0 without a turn; use at least 1.")


def _teacher_acts_alone_first(cfg: DictConfig) -> bool:
    """Whether the mixing leaves no turn of round 0 to the student."""
    if "t_max" in cfg.mixing:
        return not cfg.mixing.get("teacher_first") and OmegaConf.select(cfg, "mixing.t_max.start") == 0
    return max(cfg.schedule.get("start") or 0, cfg.schedule.get("floor") or 0) >= 1.0


def _check_budget(cfg: DictConfig) -> None:
    if cfg.rounds.labels is not None and cfg.rounds.tasks is not None:
        raise ConfigError("rounds.labels and rounds.tasks are both set; give one and add rounds.labels=null for tasks.")
    if cfg.rounds.labels is None and cfg.rounds.tasks is None:
        raise ConfigError("rounds.labels and rounds.tasks are both null; give one, as in rounds.labels=480.")
    if cfg.rounds.labels is not None and cfg.labeler.turns == "none":
        raise ConfigError(
            "labeler.turns=none never fills rounds.labels; give rounds.labels=null and rounds.tasks=NUMBER."
        )
    per_round(cfg, "labels")
    _check_prices(cfg.teacher_budget)


def _check_prices(budget: DictConfig) -> None:
    costs = [f"teacher_budget.{name}" for name in ("cost_per_round", "cost_per_run") if budget[name] is not None]
    if costs and budget.prompt_price == budget.response_price == 0:
        raise ConfigError(
            f"{costs[0]} limits nothing while both prices are 0; set teacher_budget.prompt_price and "
            "teacher_budget.response_price, of a million tokens."
        )


def _check_training(cfg: DictConfig) -> None:
    if cfg.rounds.steps is not None and cfg.rounds.epochs_per_round != 1:
        raise ConfigError("rounds.steps and rounds.epochs_per_round are both set; add rounds.steps=null for epochs.")
    if cfg.rounds.steps is None and cfg.rounds.labels is not None:
        raise ConfigError(
            "rounds.labels needs rounds.steps, or the learning rate knows no length; or set rounds.tasks."
        )
    per_round(cfg, "steps")


def per_round(cfg: DictConfig, name: str) -> list[int] | None:
    """Return `rounds.<name>` as one number per round; None where it is null.

    Raises:
        ConfigError: the list is shorter or longer than there are rounds, or a number is not positive.
    """
    value = cfg.rounds[name]
    if value is None:
        return None
    numbers = list(value) if OmegaConf.is_list(value) else [value] * cfg.rounds.num_rounds
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ConfigError(f"rounds.{name} is {value}; it must be a positive whole number, or a list of them.")
    if len(numbers) != cfg.rounds.num_rounds:
        raise ConfigError(
            f"rounds.{name} has {len(numbers)} numbers for rounds.num_rounds={cfg.rounds.num_rounds};"
            f" give one per round, or a single number for all."
        )
    return numbers
