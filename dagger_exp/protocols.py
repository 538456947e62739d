"""What must parts offer? The seams of the framework, without an implementation and without a heavy import."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from dagger_exp.types import Choice, Key, Message, Response, State, StepResult, Task


class Env(Protocol):
    """One episode of one task: stateful and single use. It owns done and reward; it raises `EnvError`."""

    async def reset(self) -> Sequence[Message]:
        """Begin, and return the opening messages."""
        ...

    async def step(self, action: Message) -> StepResult:
        """Execute one action. A malformed one is answered by an observation, never by an exception."""
        ...

    async def close(self) -> None:
        """Free what the episode held; called once, also after a failure."""
        ...


class Expert(Protocol):
    """An env whose world has a teacher of its own."""

    def expert_action(self) -> Message:
        """Return what the world's teacher would do in the current state; it may know more than the student sees."""
        ...

    def random_action(self, key: Key) -> Message:
        """Return a command that the world understands here, drawn evenly; a pure function of key and state."""
        ...


class World(Protocol):
    """A family of tasks and the env of each."""

    max_turns: int

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of `train` or `heldout`; the two share nothing."""
        ...

    def make(self, task: Task) -> Env:
        """Return a fresh env."""
        ...

    def vocabulary(self) -> Sequence[str]:
        """Return all words that its messages can hold, in a fixed order; empty where text is free."""
        ...


class Policy(Protocol):
    """Something that answers a visited state."""

    @property
    def id(self) -> str:
        """Name under which it is recorded."""
        ...

    @property
    def reads_env(self) -> bool:
        """True where the answer is read off the env, so that it must be asked before the env goes on."""
        ...

    async def act(self, state: State, env: Env) -> Response:
        """Return the action. Only a scripted policy looks at `env`. Raises `PolicyError`."""
        ...

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Hold what the policy needs while it is asked: connections, or nothing."""
        ...

    def check(self) -> None:
        """Look before the first episode whether it can answer at all; raises `ConfigError` with the mend."""
        ...


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of given tokens at temperature 1.

    `logprobs` has one value per token but the first, which nothing predicts. `top_ids` and `top_logprobs` hold the
    `num_top` likeliest tokens at each of these places; what is left of 1 is the mass of the tail.
    """

    logprobs: Sequence[float]
    top_ids: Sequence[Sequence[int]] = ()
    top_logprobs: Sequence[Sequence[float]] = ()


class Scorer(Protocol):
    """A policy that tells how likely given tokens are."""

    async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
        """Return the log-probabilities of tokens of the student's vocabulary; raises `PolicyError`."""
        ...


class Mixing(Protocol):
    """Decides who acts at each turn: a pure function of the key."""

    def choose(self, key: Key) -> Choice: ...

    def beta(self, round_index: int) -> float | None:
        """Return the probability that the teacher acts, None where the mixing has none."""
        ...

    @property
    def max_student_turns(self) -> Schedule | None:
        """How many turns an episode of a round may have; None for the world's own limit."""
        ...


class Schedule(Protocol):
    """A number per round."""

    def __call__(self, round_index: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine draws a response; `temperature` 0 is greedy. `key` makes the draw its own pure function."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    key: Key | None = None


@dataclass(frozen=True, slots=True)
class Generation:
    """Token ids and their log-probabilities under the tempered distribution, before `top_p`; `stop` or `length`."""

    token_ids: Sequence[int]
    logprobs: Sequence[float]
    finish_reason: str
    policy_version: int


class Engine(Protocol):
    """Generates token ids from token ids; raises `EngineError`."""

    @property
    def id(self) -> str:
        """Name under which it is recorded."""
        ...

    is_lock_step: bool
    """True where requests are batched in process, so that a batch of episodes must have fixed members."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation: ...

    async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
        """Return the log-probabilities of given tokens."""
        ...

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Hold what requests need: connections to a server, or nothing."""
        ...

    def load_weights(self, version: int, weights: Any) -> None:
        """Serve these weights, a live module, from now on, under this policy version; wakes an engine that rests."""
        ...

    def rest(self) -> None:
        """Leave the device to the trainer until `load_weights` is called again."""
        ...

    def close(self) -> None:
        """Free what the engine holds for good; called once."""
        ...
