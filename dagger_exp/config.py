"""Is this run legal? The schema of its plain values, the checks across its choices, and their constructors' signatures.

Components stay `_target_` nodes; `build` makes them. Nothing heavy is imported until `bind` looks at the targets.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dagger_exp.errors import ConfigError

_ROOT = Path(__file__).resolve().parent
CONF_FOLDER = str(_ROOT / "conf" if (_ROOT / "conf").is_dir() else _ROOT.parent / "conf")
"""Of the installed wheel, or of the checkout; absolute, because a relative path breaks console scripts."""


@dataclass
class Rounds:
    """Lengths; see conf/train.yaml for the units."""

    num_rounds: int = MISSING
    labels: Any = MISSING
    tasks: int | None = MISSING
    steps: Any = MISSING
    epochs_per_round: int = MISSING
    batch_size: int = MISSING
    max_tree_tokens: int = MISSING
    max_tokens: int = MISSING


@dataclass
class Rollout:
    """How episodes are collected."""

    episodes_per_task: int = MISSING
    temperature: float = MISSING
    top_p: float = MISSING
    max_new_tokens: int = MISSING
    concurrency: int = MISSING
    episode_timeout_s: float = MISSING
    max_attempts: int = MISSING


@dataclass
class Evaluation:
    """How the student is evaluated."""

    tasks: int = MISSING
    seed: int = MISSING
    temperature: float = MISSING
    concurrency: int = MISSING
    stop_at_success: float | None = MISSING


@dataclass
class RunConfig:
    """A run: plain values are typed here, components are nodes with a `_target_`."""

    name: str = MISSING
    seed: int = MISSING
    num_threads: int = MISSING
    aggregation: str = MISSING
    window: int = MISSING
    max_grad_norm: float | None = MISSING
    rounds: Rounds = MISSING
    rollout: Rollout = MISSING
    evaluation: Evaluation = MISSING
    env: Any = MISSING
    student: Any = MISSING
    teacher: Any = MISSING
    engine: Any = MISSING
    mixing: Any = MISSING
    schedule: Any = MISSING
    labeler: Any = MISSING
    filter: Any = MISSING
    loss: Any = MISSING
    optimizer: Any = MISSING
    lr_scheduler: Any = MISSING
    trainer: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    paths: Any = MISSING


@dataclass
class CollectConfig(RunConfig):
    """A collection without training."""

    store: str | None = MISSING


PASSED_BY_BUILD: dict[str, set[str]] = {
    "student": {"vocabulary", "seed"},
    "engine": {"end_id", "pad_id"},
    "mixing": {"schedule"},
    "logger": {"id", "name", "save_dir", "resume", "config", "settings", "log_model"},
    "trainer": {"max_epochs", "callbacks", "logger", "plugins"},
    "optimizer": {"params"},
    "lr_scheduler": {"optimizer", "num_steps"},
}
"""Constructor arguments that `build` passes itself, by group."""


def register_schema() -> None:
    """Make the schemas known to Hydra; `defaults` lists name them."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    store.store(name="collect_schema", node=CollectConfig)


def compose_checked(config_name: str, overrides: list[str]) -> DictConfig:
    """Compose a config as Hydra would.

    Raises:
        ConfigError: one sentence that names the key and, where one is near, what was probably meant.
    """
    register_schema()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(CONF_FOLDER, version_base="1.3"):
            cfg = compose(config_name, overrides)
        OmegaConf.resolve(cfg)
        for missing in sorted(OmegaConf.missing_keys(cfg)):
            raise ConfigError(f"{missing} has no value; give it, as in {missing}=VALUE.")
        return cfg
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_sentence(error, config_name)) from error


def check(cfg: DictConfig) -> None:
    """Refuse choices that contradict each other, then bind every component to its constructor.

    Raises:
        ConfigError: says what to change.
    """
    _check_mixing(cfg)
    rounds = cfg.rounds
    if (rounds.labels is None) == (rounds.tasks is None):
        raise ConfigError("give exactly one of rounds.labels and rounds.tasks; set the other to null.")
    if rounds.steps is not None and rounds.epochs_per_round != 1:
        raise ConfigError("give rounds.steps or rounds.epochs_per_round, not both; set rounds.steps=null.")
    for name in ("labels", "steps"):
        per_round(cfg, name)
    bind(cfg)


def _check_mixing(cfg: DictConfig) -> None:
    mixing = str(cfg.mixing.get("_target_")).rsplit(".", 1)[-1]
    has_schedule = cfg.schedule.get("_target_") is not None
    if mixing == "TurnMixture" and not has_schedule:
        raise ConfigError("mixing=turn needs a beta; choose a schedule, as in schedule=linear.")
    if cfg.name == "sft" and mixing != "TeacherOnly":
        raise ConfigError("method=sft trains on the teacher's own episodes; remove the mixing or choose method=dagger.")
    if mixing != "TurnMixture" and has_schedule:
        raise ConfigError(f"{mixing} has no beta, but a schedule is set; add schedule=none, or choose mixing=turn.")
    if mixing == "TeacherOnly" and cfg.labeler.turns == "student":
        raise ConfigError("the teacher acts at every turn, but labeler=student labels the student's; use labeler=all.")


def per_round(cfg: DictConfig, name: str) -> list[int] | None:
    """Return `rounds.<name>` as one number per round; None where it is null.

    Raises:
        ConfigError: the list is shorter or longer than there are rounds, or a number is not positive.
    """
    value = cfg.rounds[name]
    if value is None:
        return None
    numbers = [value] * cfg.rounds.num_rounds if isinstance(value, int) else list(value)
    if len(numbers) != cfg.rounds.num_rounds:
        raise ConfigError(
            f"rounds.{name} has {len(numbers)} numbers for rounds.num_rounds={cfg.rounds.num_rounds};"
            f" give one per round, or a single number for all."
        )
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ConfigError(f"rounds.{name} must be positive whole numbers, not {value}.")
    return numbers


def bind(cfg: DictConfig) -> None:
    """Hold every `_target_` node against the signature of its target.

    Raises:
        ConfigError: no such target, an argument it does not take or lacks, or a value of the wrong type.
    """
    for path, node in _targets(OmegaConf.to_container(cfg, resolve=True), ""):
        group = path.split(".")[0]
        try:
            target = get_object(node["_target_"])
        except Exception as error:
            raise ConfigError(f"{path}._target_: {node['_target_']} could not be imported ({error}).") from error
        parameters = inspect.signature(target).parameters
        given = {k: v for k, v in node.items() if not k.startswith("_")}
        _bind_names(path, parameters, given.keys(), PASSED_BY_BUILD.get(group, set()), node.get("_partial_"))
        _bind_types(path, target, given)


def _bind_names(
    path: str,
    parameters: Mapping[str, inspect.Parameter],
    given: typing.AbstractSet[str],
    passed: set[str],
    partial: bool | None,
) -> None:
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in sorted(given - parameters.keys()):
        if not takes_any:
            raise ConfigError(f"{path}.{name} is unknown{_nearest(name, parameters)}.")
    for name, parameter in parameters.items():
        variadic = parameter.kind in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        if parameter.default is inspect.Parameter.empty and not variadic and name not in given | passed and not partial:
            raise ConfigError(f"{path}.{name} has no value; give it, as in {path}.{name}=VALUE.")


def _bind_types(path: str, target: Any, given: Mapping[str, Any]) -> None:
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError, AttributeError):
        return  # a third party's annotations that only its type checker can resolve
    for name, value in given.items():
        if name in hints and isinstance(value, str | int | float | bool) and not _fits(value, hints[name]):
            wanted = getattr(hints[name], "__name__", str(hints[name]))
            raise ConfigError(f"{path}.{name} is {value!r}; it must be of type {wanted}.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a hint of plain types; anything else is left to the constructor."""
    options = (
        typing.get_args(hint) if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    )
    if not all(option in (str, int, float, bool, type(None)) for option in options):
        return True
    if isinstance(value, bool):
        return bool in options
    return type(value) in options or (isinstance(value, int) and float in options)


def _targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if node.get("_target_"):
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))


def _sentence(error: Exception, config_name: str) -> str:
    """Return Hydra's or OmegaConf's message as one sentence, with the nearest key or choice."""
    lines = [line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()]
    text = lines[0].rstrip(".")
    full_key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key")), "")
    if "not in" in text and full_key:
        known = _keys(OmegaConf.structured(RunConfig), "")
        return f"{full_key} is unknown{_nearest(full_key, known)}."
    if "Could not override" in str(error).splitlines()[0]:
        key = str(error).splitlines()[0].split("'")[1]
        return f"{key} is unknown{_nearest(key, _all_keys(config_name))}; see dagger-{config_name} --help."
    if "Could not find" in text and "/" in text:
        wanted = text.split("'")[1]
        group, _, choice = wanted.rpartition("/")
        choices = sorted(p.stem for p in (Path(CONF_FOLDER) / group).glob("*.yaml"))
        return f"{group}={choice} does not exist; choose one of {', '.join(choices)}."
    return f"{full_key}: {text}." if full_key and full_key not in text else f"{text}."


def _all_keys(config_name: str) -> list[str]:
    with initialize_config_dir(CONF_FOLDER, version_base="1.3"):
        return _keys(compose(config_name), "")


def _keys(node: Any, path: str) -> list[str]:
    keys: list[str] = []
    for key in node:
        name = f"{path}.{key}" if path else str(key)
        keys.append(name)
        if not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            keys += _keys(node[key], name)
    return keys


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""
