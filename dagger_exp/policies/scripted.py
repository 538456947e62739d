"""A policy that knows: it answers with what the world's own teacher would do."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import cast

from dagger_exp.errors import ConfigError, PolicyError
from dagger_exp.protocols import Env, Expert
from dagger_exp.seeding import uniform
from dagger_exp.types import Response, State


class ScriptedPolicy:
    """The teacher of a world that has one (`Env.expert_action`).

    Args:
        error_rate: share of turns at which a random valid command is given instead, in [0, 1].
        id: name under which the policy is recorded.
    """

    reads_env, address = True, ""

    def __init__(self, *, error_rate: float = 0.0, id: str = "scripted") -> None:
        if not 0.0 <= error_rate <= 1.0:
            raise ConfigError(f"error_rate is {error_rate}; a rate lies in [0, 1].")
        self.error_rate = error_rate
        self.id = id

    async def act(self, state: State, env: Env) -> Response:
        """Return the expert's action; raises `PolicyError` where the world has no teacher of its own."""
        if not hasattr(env, "expert_action"):
            raise PolicyError("This world has no teacher of its own; choose another teacher than `scripted`.")
        expert = cast(Expert, env)
        if uniform(state.key, f"{self.id} errs") < self.error_rate:
            return Response(expert.random_action(state.key))
        return Response(expert.expert_action())

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Need nothing."""
        return nullcontext()

    def check(self) -> None:
        """Find out at the first turn: only an env knows."""
