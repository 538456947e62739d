"""Does a component take what its YAML gives? Every `_target_` node against the signature of its target.

Nothing is made; but the targets' modules are imported, and with them what is heavy.
"""

from __future__ import annotations

import inspect
import logging
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from dagger_exp.config.mistakes import unknown
from dagger_exp.errors import ConfigError

PASSED_BY_BUILD: dict[str, set[str]] = {
    "demonstrations": {"scaffold"},
    "env": {"scaffold", "sandboxes"},
    "sandbox": {"run_id"},
    "student": {"vocabulary", "seed"},
    "teacher": {"scaffold"},
    "engine": {"end_id", "pad_id", "student", "folder"},
    "mixing": {"schedule"},
    "logger": {"id", "name", "job_type", "save_dir", "resume", "config", "settings", "log_model"},
    "trainer": {
        *("max_epochs", "callbacks", "logger", "plugins", "default_root_dir", "reload_dataloaders_every_n_epochs"),
        *("enable_progress_bar", "enable_model_summary", "use_distributed_sampler", "num_sanity_val_steps"),
        "log_every_n_steps",
    },
    "optimizer": {"params"},
    "lr_scheduler": {"optimizer", "num_steps"},
}
"""Constructor arguments that `build` passes itself, by group."""

OPTIONAL = ("demonstrations", "logger", "sandbox", "scaffold", "schedule")
"""Groups with an option that makes nothing (`_target_: null`)."""


def bind(cfg: DictConfig) -> None:
    """Hold every `_target_` node against the signature of its target.

    Raises:
        ConfigError: no such target, an argument it does not take or lacks, or a value of the wrong type.
    """
    for path, node in _targets(OmegaConf.to_container(cfg, resolve=True), ""):
        bind_node(path, node)
    _bind_env(cfg)


def bind_node(path: str, node: dict[str, Any]) -> None:
    """Hold one `_target_` node, which stands at this path of a config, against the signature of its target.

    Raises:
        ConfigError: as `bind`.
    """
    if node["_target_"] is None:
        _bind_nothing(path, node)
        return
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it prints what is raised
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        cause = error.__cause__ or error
        raise ConfigError(
            f"{path}._target_ is {node['_target_']}, which cannot be imported ({type(cause).__name__}: {cause}); "
            f"{Path.cwd()} was searched too."
        ) from error
    parameters = inspect.signature(target).parameters
    given = {k: v for k, v in node.items() if not k.startswith("_")}
    _bind_names(path, parameters, given.keys(), bool(node.get("_partial_")))
    _bind_types(path, target, given)


def _bind_env(cfg: DictConfig) -> None:
    """Refuse a scaffold or sandbox for an env that runs no commands, where it would be dropped without a word."""
    parameters = inspect.signature(get_object(cfg.env["_target_"])).parameters
    for group, argument in (("scaffold", "scaffold"), ("sandbox", "sandboxes")):
        if cfg[group].get("_target_") is not None and argument not in parameters:
            raise ConfigError(
                f"this env runs no commands and takes no {group}; remove {group}=..., or choose another env."
            )


def _targets(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from _targets(value, f"{path}.{key}" if path else str(key))


def _bind_nothing(path: str, node: dict[str, Any]) -> None:
    if path not in OPTIONAL:
        raise ConfigError(f"{path}._target_ is null; choose an option of {path}, see --help.")
    for name in node.keys() - {"_target_"}:
        raise ConfigError(f"{path}.{name} is set, but this {path} makes nothing; choose another {path}, see --help.")


def _bind_names(
    path: str, parameters: Mapping[str, inspect.Parameter], given: typing.AbstractSet[str], partial: bool
) -> None:
    passed = PASSED_BY_BUILD.get(path.split(".")[0], set())
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in sorted(given - parameters.keys()):
        if not takes_any:
            raise ConfigError(unknown(f"{path}.{name}", {f"{path}.{known}" for known in parameters.keys() - passed}))
    for name in sorted(given & passed):
        raise ConfigError(f"{path}.{name} is given by the run itself; remove it.")
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
        if name in hints and isinstance(value, str | int | float | bool | None) and not _fits(value, hints[name]):
            shown = "null" if value is None else repr(value)
            raise ConfigError(f"{path}.{name} is {shown}; it must be {_named(hints[name])}.")


def _named(hint: Any) -> str:
    """Return a hint in words; what YAML cannot write, as a tensor, is named only where there is nothing else."""
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    plain = [words[option] for option in _options(hint) if option in words]
    return " or ".join(
        plain if set(plain) - {"null"} else [getattr(option, "__name__", str(option)) for option in _options(hint)]
    )


def _options(hint: Any) -> tuple[Any, ...]:
    is_union = isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union
    return typing.get_args(hint) if is_union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits a hint that names classes; anything else is left to the constructor."""
    options = _options(hint)
    if not all(isinstance(option, type) and typing.get_origin(option) is None for option in options):
        return True
    if isinstance(value, bool):
        return bool in options
    return type(value) in options or object in options or (isinstance(value, int) and float in options)
