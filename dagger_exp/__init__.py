"""Train multi-turn LLM agents with DAgger and its neighbours: every method is a Hydra config."""

import os
from typing import TYPE_CHECKING, Any

# Arrow's own allocator takes memory in pages of 2 MB, of which a table of small columns touches a dozen: on a virtual
# machine that costs more than all else that is done with it. Arrow reads this when it is first imported, and no later.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

import dagger_exp.loading  # noqa: F401  before anything imports Lightning

if TYPE_CHECKING:
    from dagger_exp.api import evaluate, load_run, train

__all__ = ["evaluate", "load_run", "train"]


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is asked for, so that importing the package stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'dagger_exp' has no attribute {name!r}")
    from dagger_exp import api

    return getattr(api, name)
