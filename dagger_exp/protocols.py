"""What must parts offer? The seams of the framework, without an implementation and without a heavy import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from dagger_exp.types import Choice, Key, Message, Response, State, StepResult, Task, ToolCall, Usage


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
        """Return the tasks of `train`, `validation` or `heldout`, no two of which share a task.

        A world may do without `validation`, and returns no task for it then.
        """
        ...

    def make(self, task: Task) -> Env:
        """Return a fresh env."""
        ...

    def vocabulary(self) -> Sequence[str]:
        """Return all words that its messages can hold, in a fixed order; empty where text is free."""
        ...

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Hold what its envs share while episodes are played: sandboxes that are started ahead, or nothing."""
        ...


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a sandbox holds when it starts; two of one spec can stand in for each other.

    Args:
        image: of a container; None for a sandbox that is made of this machine's own programs.
        mounts: folders of this machine by the path at which they can be read, and not written.
        environment: variables of every command.
    """

    image: str | None = None
    mounts: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Execution:
    """What a script did. `exit_code` is None where it was ended for its time.

    `output` is what it wrote to both streams, in order, without the middle of what was too long for a sandbox to keep:
    `num_cut_bytes` were left out there.
    """

    exit_code: int | None
    output: str
    timed_out: bool = False
    num_cut_bytes: int = 0


class Sandbox(Protocol):
    """A place for commands that nobody has read: no network, nothing of this machine that matters, limits on the rest.

    Commands share a working folder, `/work`, and a private `/tmp`; no process outlives the script that started it. What
    a command breaks is its own business; `SandboxError` is raised where the sandbox itself is gone.
    """

    async def exec(self, script: str, timeout_s: float) -> Execution:
        """Run a shell script in `/work`."""
        ...

    async def read_file(self, path: str) -> bytes:
        """Return a regular file that the commands could read, without following a link.

        Raises:
            FileNotFoundError: there is none.
            OSError: it is too large (`errno.EFBIG`).
        """
        ...

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        """Write files below `/work`, with the folders that they need, as the user of the commands.

        Raises `OSError` where a command could not have written them either: a full disk, a link or a folder in the way.
        """
        ...

    async def close(self) -> None:
        """End all that runs in it, and remove it."""
        ...


class Sandboxes(Protocol):
    """Starts sandboxes, some of them ahead of time, and never more than `max_live` at the same time."""

    max_live: int

    @property
    def python(self) -> str:
        """What tells their `python3` from others before one is started: its version, or the image that has it."""
        ...

    def check(self) -> None:
        """Look whether this machine can start one; raises `ConfigError` that names what is missing."""
        ...

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Hold the sandboxes of one event loop; all are closed at its end, also after an exception."""
        ...

    async def open(self, spec: SandboxSpec, episode: str) -> Sandbox:
        """Return a started sandbox, once there is room; raises `SandboxError`."""
        ...


class Scaffold(Protocol):
    """Turns messages into tool calls and back, and runs them in a sandbox."""

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """JSON schemas that the chat template is to show; none where a call is written as plain text."""
        ...

    @property
    def instructions(self) -> str:
        """How the model is to act, for the first message."""
        ...

    def read(self, message: Message) -> ToolCall:
        """Return the one call of a message; raises `MalformedAction` that tells the model what to mend."""
        ...

    def write(self, call: ToolCall) -> Message:
        """Return the message that makes this call."""
        ...

    def normalized(self, message: Message) -> Message:
        """Return what a model said in whatever format as a message that every chat template writes in its own."""
        ...

    async def run(self, call: ToolCall, sandbox: Sandbox) -> StepResult:
        """Run a call; its `stop_reason` stays None, since only an env knows what the end of an episode is."""
        ...

    def is_submit(self, call: ToolCall) -> bool:
        """Return whether the call says that the task is done."""
        ...


class Policy(Protocol):
    """Something that answers a visited state."""

    @property
    def id(self) -> str:
        """Name under which it is recorded."""
        ...

    @property
    def address(self) -> str:
        """Where it answers, for a person to look: an address, or "" for this process."""
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
        """Look before the first episode whether it can answer at all; raises `ConfigError` with the cure."""
        ...


@dataclass(frozen=True, slots=True)
class Scores:
    """Log-probabilities of given tokens at temperature 1.

    `logprobs` has one value per token but the first, which nothing predicts. `top_ids` and `top_logprobs` hold the
    `num_top` likeliest tokens at each of these places; what is left of 1 is the mass of the tail. `usage` is what they
    have cost at a server.
    """

    logprobs: Sequence[float]
    top_ids: Sequence[Sequence[int]] = ()
    top_logprobs: Sequence[Sequence[float]] = ()
    usage: Usage | None = None


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
    def max_turns(self) -> Schedule | None:
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
    """Token ids, their log-probabilities under what they were drawn from (after `top_p`), and `stop` or `length`."""

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

    @property
    def address(self) -> str:
        """Where it answers, for a person to look: addresses, or "" for this process."""
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

    async def confirm(self) -> None:
        """Raise `DriftError` where what was answered since `load_weights` may be of other weights."""
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
