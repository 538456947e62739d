"""What did the user mean? Hydra's and OmegaConf's errors as one sentence that names the key and the mend."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dagger_exp.analysis.settings import flat
from dagger_exp.config import schema
from dagger_exp.errors import ConfigError

_ROOT = Path(__file__).resolve().parents[1]
CONF_FOLDER = str(_ROOT / "conf" if (_ROOT / "conf").is_dir() else _ROOT.parent / "conf")
"""Of the installed wheel, or of the checkout; absolute, because a relative path breaks console scripts."""

TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
MENDS = {
    r"Missing mandatory value": "{key} has no value; give it, as in {key}=VALUE.",
    r"Ambiguous value for argument '(?P<it>[^']*)'": (
        "{it} holds several values; add -m to run one after the other, or write a list as [1,2]."
    ),
    r"Value '(?P<value>.*?)' of type '.*' could not be converted to (?P<type>\w+)": (
        "{key} is {value!r}; it must be {wanted}."
    ),
    r"is not Optional": "{key} cannot be null; give it a value.",
    r"An item is already at '(?P<key>[^']*)'": "{key} exists already; write {key}=VALUE without the +.",
}
"""What Hydra and OmegaConf say, and how it is said here."""
SPECIAL = "= , : ( ) [ ] { } ' \" ~ or a space"


@contextmanager
def said_in_one_sentence(config_name: str, overrides: Sequence[str], key: str = "") -> Iterator[None]:
    """Turn errors of composition and interpolation into a `ConfigError`.

    Args:
        config_name: of the primary config, to find near keys.
        overrides: as they were typed.
        key: that is looked at; Hydra's own text names it where it is empty.
    """
    try:
        yield
    except MissingConfigException as error:
        raise ConfigError(_missing_option(error)) from error
    except OverrideParseException as error:
        raise ConfigError(_unreadable(error.override)) from error
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(_sentence(error, config_name, overrides, key)) from error


def unknown(name: str, known: Iterable[str], command: str = "") -> str:
    """Return the sentence for a key that does not exist, with the nearest one that does."""
    likely = [key for key in known if not name.startswith(key) and "._" not in key]
    found = difflib.get_close_matches(name, sorted(likely), n=1)
    if found:
        return f"{name} is unknown; did you mean {found[0]}?"
    return f"{name} is unknown; see dagger-{command} --help." if command else f"{name} is unknown; remove it."


def groups() -> list[str]:
    """Return the groups, as they lie on the disk."""
    return sorted(path.name for path in Path(CONF_FOLDER).iterdir() if path.is_dir())


def options(group: str) -> list[str]:
    """Return the options of a group, as they lie on the disk."""
    return sorted(path.stem for path in (Path(CONF_FOLDER) / group).glob("*.yaml"))


def _missing_option(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    choices = sorted(error.options or options(group))
    if not group:
        return f"there is no config {option!r}; see --help."
    near = difflib.get_close_matches(option, choices, n=1)
    question = f"did you mean {group}={near[0]}? " if near else ""
    return f"{group}={option} does not exist; {question}choose one of {', '.join(choices)}."


def _unreadable(override: str) -> str:
    key, is_set, value = override.partition("=")
    if not is_set:
        return f"{override!r} is no override; write KEY=VALUE, as in seed=3."
    if value.startswith("~"):
        return f"{override!r} cannot be read: ~ is not expanded; write {key}={Path(value).expanduser()}."
    if value.startswith("="):
        return f"{override!r} cannot be read; write {key}={value.lstrip('=')}."
    quoted = f"{key}='{value}'" if "'" not in value else f'{key}="{value}"'
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return f"{override!r} cannot be read; write KEY=VALUE, as in seed=3."
    shell = f'"{quoted}"' if '"' not in quoted else f"'{quoted}'"
    return f"{override!r} cannot be read; quote a value that holds any of {SPECIAL}: {shell}."


def _sentence(error: Exception, config_name: str, overrides: Sequence[str], key: str) -> str:
    text = " ".join(str(error).split())
    cause = " ".join(str(error.__cause__ or error).split())
    key = _first(r"full_key: (\S+)", cause) or _first(r"full_key: (\S+)", text) or key
    key = key or _first(r"field '(\w+)'", cause)
    where = _first(r"In '([^']*)'", text)
    prefix = f"conf/{where}.yaml: " if where else ""
    if name := _first(r"Could not override '([^']*)'", text) or (key if "not in" in cause else ""):
        known = _known_keys(config_name, [o for o in overrides if not o.lstrip("+~").startswith(name)])
        return prefix + unknown(name, [*known, *groups()], config_name)
    if "Config group override must be" in text:
        return _wrong_option(overrides)
    if found := re.search(r"is not a subclass of (\w+)\. value: (.+?)(?: full_key|$)", cause):
        keys = [field.name for field in dataclasses.fields(getattr(schema, found[1], schema.RunConfig))]
        return f"{prefix}{key} holds {', '.join(keys)}; set one, as in {key}.{keys[0]}={found[2]}."
    for pattern, sentence in MENDS.items():
        if found := re.search(pattern, f"{cause} {text}"):
            named = {"key": key, "type": "", **found.groupdict()}
            return prefix + sentence.format(**named, wanted=TYPES.get(named["type"], named["type"]))
    short = cause.partition(" full_key:")[0].rstrip(".")
    return f"{prefix}{key}: {short}." if key and key not in short else f"{prefix}{short}."


def _wrong_option(overrides: Sequence[str]) -> str:
    for override in overrides:
        group, _, value = override.partition("=")
        if options(group) and value not in options(group):
            return f"{override} is no option of {group}; choose one of {', '.join(options(group))}."
    return "an override has no key, or a value that is no option of its group; write KEY=VALUE, see --help."


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else ""


def _known_keys(config_name: str, overrides: Sequence[str]) -> set[str]:
    """Return the keys that could have been meant: beside what else was typed or, where that fails too, by default."""
    GlobalHydra.instance().clear()  # inside of a sweep it is in use, and that has just failed
    with initialize_config_dir(CONF_FOLDER, version_base="1.3"):
        for tried in (list(overrides), []):
            with suppress(HydraException, OmegaConfBaseException, ValueError):
                config: Any = OmegaConf.to_container(compose(config_name, tried))
                return {key for leaf in flat(config) for key in (leaf, leaf.partition(".")[0])}
    return set()  # the mistake stands in a file that is always read
