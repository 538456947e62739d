"""How is a component made of its node in the config? With the shared objects that its constructor asks for."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from dagger_exp.errors import ConfigError, DaggerError


def make_optional(node: DictConfig, **shared: Any) -> Any:
    """Make a component of a group that has an option which makes nothing."""
    return make(node, **shared) if node.get("_target_") else None


def make(node: DictConfig, **shared: Any) -> Any:
    """Instantiate a component with those shared objects that its constructor asks for; nothing else instantiates."""
    parameters = inspect.signature(get_object(node["_target_"])).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    wanted = {name: value for name, value in shared.items() if takes_any or name in parameters}
    # As a partial first: Hydra would turn a shared object that is a dataclass into a plain dictionary.
    with refused(node["_target_"]):
        maker = partial(instantiate(node, _convert_="all", _partial_=True), **wanted)
    called = refused(node["_target_"])(maker)
    return called if node.get("_partial_") else called()


@contextmanager
def refused(target: str) -> Iterator[None]:
    """Turn what a constructor says of its values into a `ConfigError`."""
    try:
        yield
    except (InstantiationException, TypeError, ValueError, ArithmeticError, MisconfigurationException) as error:
        if isinstance(error.__cause__, DaggerError):  # of a node in the node
            raise error.__cause__ from error
        raise ConfigError(f"{target.rsplit('.', 1)[-1]} refuses its values: {' '.join(str(error).split())}") from error
