"""Is this run legal? Its values against the schema, its components against their constructors, its choices together."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dagger_exp.config.binding import bind
from dagger_exp.config.mistakes import said_in_one_sentence, unknown
from dagger_exp.config.schema import CollectConfig, RunConfig
from dagger_exp.data.selection import EpisodeFilter
from dagger_exp.errors import ConfigError
from dagger_exp.rollout.labeler import Labeler


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
    parts = [_secrets(typed), _of_lengths(typed), _of_mixing(typed)]
    if command == "evaluate":
        parts.append(_of_evaluation(typed))
    else:
        parts.append(_of_training(typed) if command == "train" else _of_collection(typed))
        parts += [_of_rounds(typed), _of_prices(typed.teacher_budget)]
    for sentence in chain(*parts):
        raise ConfigError(sentence)
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


SECRET = re.compile(r"(?i)api[_-]?key|secret|password|authorization|token$")


def _secrets(cfg: DictConfig) -> Iterator[str]:
    """Yield a sentence for each place that may hold a key or a password, before it is written anywhere."""
    for path in ("teacher.endpoint.api_key_env", "engine.endpoint.api_key_env"):
        name = OmegaConf.select(cfg, path)
        if name is not None and not (re.fullmatch("[A-Z][A-Z0-9_]*", str(name)) or str(name) in os.environ):
            yield (
                f"{path} is the name of the variable that holds the key, as OPENAI_API_KEY; what it is set to is no "
                "variable here, and not shown, since it may be the key itself."
            )
    for path in ("teacher.request", "engine.server.environment", "engine.server.arguments"):
        given: Any = OmegaConf.select(cfg, path) or ()
        names = list(given) if OmegaConf.is_dict(given) else [o.partition("=")[0] for o in given if o.startswith("--")]
        for found in filter(SECRET.search, names):
            yield (
                f"{path} has {found}, and what a config holds is written down: leave it out, set the key in your "
                "shell, whose variables a server inherits, and name its variable in api_key_env."
            )
    several = OmegaConf.select(cfg, "engine.addresses") or []
    if not OmegaConf.is_list(several) and several != []:
        yield "engine.addresses is a list; write it as [http://HOST:PORT]."
    one = OmegaConf.select(cfg, "teacher.endpoint.address")
    for path, address in [("teacher.endpoint.address", one), *(("engine.addresses", each) for each in several)]:
        if any(mark in str(address) for mark in "@?"):
            yield (
                f"{path} holds a name, a password or a query, which is not shown; leave it out, and put the key into "
                "the variable that api_key_env names."
            )


def _of_lengths(cfg: DictConfig) -> Iterator[str]:
    longest, context = cfg.rollout.max_new_tokens, cfg.student.get("max_context_tokens")
    if type(context) is int and longest >= context:
        yield (
            f"rollout.max_new_tokens={longest} leaves no room for a prompt in student.max_context_tokens={context}; "
            "lower the one or raise the other."
        )
    if OmegaConf.select(cfg, "mixing.max_turns.start") == 0:
        yield "mixing.max_turns.start is 0, which leaves round 0 without a turn; use at least 1."
    if OmegaConf.select(cfg, "demonstrations.files", default="none") in (None, "", []):
        yield "demonstrations.files is empty; name a file, as in demonstrations.files=[FILE]."


def _of_mixing(cfg: DictConfig) -> Iterator[str]:
    mixing = str(cfg.mixing.get("_target_")).rsplit(".", 1)[-1]
    choice = {"SwitchMixture": "switch", "StudentOnly": "student", "TeacherOnly": "teacher"}.get(mixing, mixing)
    has_schedule = cfg.schedule.get("_target_") is not None
    if mixing == "TurnMixture" and not has_schedule:
        yield "mixing=turn needs a beta; choose a schedule, as in schedule=linear."
    if mixing != "TurnMixture" and has_schedule:
        yield f"mixing={choice} has no beta, but a schedule is set; add schedule=none or keep mixing=turn."
    if mixing == "TeacherOnly" and cfg.labeler.turns == "student":
        yield "the teacher acts at every turn, but labeler.turns=student labels the student's; use labeler.turns=all."
    if cfg.mixing.get("teacher_first") and (OmegaConf.select(cfg, "mixing.t_max.step") or 0) > 0:
        yield (
            "mixing.teacher_first with a growing mixing.t_max leaves ever more to the teacher; "
            "choose mixing=switch_teacher_first."
        )
    is_played = cfg.demonstrations.get("_target_") is None
    if cfg.labeler.turns == "student" and is_played and _teacher_acts_alone_first(cfg):
        yield (
            "labeler.turns=student finds no turn of the student in round 0; lower schedule.start, or raise "
            "mixing.t_max.start."
        )


def _teacher_acts_alone_first(cfg: DictConfig) -> bool:
    """Return whether the mixing leaves no turn of round 0 to the student."""
    if "t_max" in cfg.mixing:
        return not cfg.mixing.get("teacher_first") and OmegaConf.select(cfg, "mixing.t_max.start") == 0
    return max(cfg.schedule.get("start") or 0, cfg.schedule.get("floor") or 0) >= 1.0


def _of_evaluation(cfg: DictConfig) -> Iterator[str]:
    if not (cfg.student.get("init") or cfg.student.get("path")):
        yield "dagger-evaluate needs a student; name one, as in student.init=outputs/runs/FOLDER."


def _of_rounds(cfg: DictConfig) -> Iterator[str]:
    labels, tasks = cfg.rounds.labels, cfg.rounds.tasks
    if labels is not None and tasks is not None:
        yield "rounds.labels and rounds.tasks are both set; give one and add rounds.labels=null for tasks."
    if labels is None and tasks is None:
        yield "rounds.labels and rounds.tasks are both null; give one, as in rounds.labels=480."
    if labels is not None and cfg.labeler.turns == "none":
        yield "labeler.turns=none never fills rounds.labels; give rounds.labels=null and rounds.tasks=NUMBER."
    per_round(cfg, "labels")


def _of_prices(budget: DictConfig) -> Iterator[str]:
    limits = [f"teacher_budget.{name}" for name in ("cost_per_round", "cost_per_run") if budget[name] is not None]
    if limits and budget.prompt_price == budget.response_price == 0:
        yield (
            f"{limits[0]} limits nothing while both prices are 0; set teacher_budget.prompt_price and "
            "teacher_budget.response_price, of a million tokens."
        )


def _of_collection(cfg: DictConfig) -> Iterator[str]:
    if cfg.store is not None and cfg.demonstrations.get("_target_") is not None:
        yield "demonstrations make round 0, which the store has already; leave out store or demonstrations."


def _of_training(cfg: DictConfig) -> Iterator[str]:
    if cfg.labeler.turns == "none":
        yield "labeler.turns=none leaves nothing to train on; choose labeler.turns=all, or use dagger-collect."
    yield from _of_validation(cfg)
    if cfg.rounds.steps is not None and cfg.rounds.epochs_per_round != 1:
        yield "rounds.steps and rounds.epochs_per_round are both set; add rounds.steps=null for epochs."
    if cfg.rounds.steps is None and cfg.rounds.labels is not None:
        yield "rounds.labels needs rounds.steps, or the learning rate knows no length; or set rounds.tasks."
    per_round(cfg, "steps")


def _of_validation(cfg: DictConfig) -> Iterator[str]:
    wanting = {"evaluation.stop_at_success": cfg.evaluation.stop_at_success is not None}
    wanting["keep_students=best"] = cfg.keep_students == "best"
    for key in [key for key, wants in wanting.items() if wants and not cfg.evaluation.validation_tasks]:
        yield f"{key} looks at validation tasks, and evaluation.validation_tasks is 0; raise it."


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
