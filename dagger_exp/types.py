"""What is recorded: tasks, messages, turns, episodes, examples, and the two enums that a record uses.

Plain frozen dataclasses without behaviour beyond what can be derived from their own fields; no heavy import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np

SCHEMA_VERSION = 4
"""Version of the record on disk; a store of another version is refused, never guessed at.

It changes with the meaning or the type of a column. A column more does not change it: see `store.schema.conformed`.
"""


class Actor(StrEnum):
    """Who executed a turn."""

    STUDENT = "student"
    TEACHER = "teacher"
    REPLAY = "replay"


class StopReason(StrEnum):
    """Why an episode ended. The first six are the model's doing and count in every rate."""

    SOLVED = "solved"
    UNSOLVED = "unsolved"
    MAX_TURNS = "max_turns"
    CONTEXT = "context"
    LOOP = "loop"
    INVALID_ACTIONS = "invalid_actions"
    TIMEOUT = "timeout"
    SANDBOX = "sandbox"
    ENGINE = "engine"
    TEACHER = "teacher"
    DEADLINE = "deadline"
    BUDGET = "budget"
    INTERRUPTED = "interrupted"

    @property
    def is_infrastructure(self) -> bool:
        """True where the model is not to blame: never in a loss, never in a success rate, always counted."""
        return self not in _MODEL_REASONS

    @property
    def is_cut(self) -> bool:
        """True where the episode stopped from outside at a sound state, so that its labelled turns stay usable."""
        return self in _CUT_REASONS


_CUT_REASONS = frozenset({StopReason.TIMEOUT, StopReason.TEACHER, StopReason.DEADLINE, StopReason.BUDGET})
_MODEL_REASONS = frozenset(
    {
        StopReason.SOLVED,
        StopReason.UNSOLVED,
        StopReason.MAX_TURNS,
        StopReason.CONTEXT,
        StopReason.LOOP,
        StopReason.INVALID_ACTIONS,
    }
)


class Key(NamedTuple):
    """The coordinates of one random choice; with a purpose they decide it (see `seeding`)."""

    seed: int
    round_index: int
    task_id: str
    episode_index: int
    turn_index: int = 0


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool; `arguments` is the JSON text as it was written, well formed or not."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. `reasoning` and `tool_calls` are what a served model gave apart from its text."""

    role: str
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of requests, in the tokens that the server counts."""

    num_prompt_tokens: int = 0
    num_response_tokens: int = 0
    num_queries: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """One immutable row of a world: what is to be solved, and the data from which its env is made."""

    id: str
    split: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class State:
    """A visited state s_t: everything the agent has seen, as messages and as the token ids of its prompt."""

    messages: Sequence[Message]
    prompt_ids: Sequence[int]
    key: Key


@dataclass(frozen=True, slots=True)
class Response:
    """An action a_t, one whole turn. `token_ids` and `logprobs` are empty where no engine produced it.

    `temperature` and `top_p` are those that an engine of this run sampled it with.
    """

    message: Message
    token_ids: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    finish_reason: str = "stop"
    policy_version: int = 0
    temperature: float | None = None
    top_p: float | None = None
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an env answers to an action; `stop_reason` is None while the episode goes on.

    An action that is not understood is not `valid`. One that `failed` did not do what it was for, as a command with
    another exit code than 0. `action_error` is `syntax` or `runtime` where a command or program that it wrote failed
    so, else empty; a test that fails is neither. `num_cut_chars` of the observation were left out already.
    """

    observation: Message
    reward: float = 0.0
    stop_reason: StopReason | None = None
    valid: bool = True
    action_error: str = ""
    failed: bool = False
    num_cut_chars: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """Who acts at a turn, with the numbers that decided it."""

    actor: Actor
    beta: float | None = None
    coin: float | None = None
    kappa: int | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One observation and one response, as executed, with the teacher's label for the same state.

    `context_ids` are the tokens that the prompt adds to the turn before (its prompt and its response); where
    `starts_branch` is true they are the whole prompt. `label_ids` is None where there is no label, and
    `label_error` says why where the teacher was asked for one.
    `teacher_logprobs` has a value per token of the response, where it was asked for; the two `teacher_top_*` have the
    likeliest k tokens at each of these places, one place after the other; what is left of 1 is the mass of the tail.
    The student's response was sampled with `temperature` and `top_p`; both are None where another acted.
    `num_cut_chars` were left out of the middle of the observation. The teacher's tokens are those that its server
    counted, prompts included.
    """

    turn_index: int
    actor: Actor
    observation: str
    context_ids: Sequence[int]
    starts_branch: bool
    response_text: str
    response_ids: Sequence[int]
    sampling_logprobs: Sequence[float] = ()
    label_text: str | None = None
    label_ids: Sequence[int] | None = None
    label_error: str = ""
    teacher_logprobs: Sequence[float] = ()
    teacher_top_ids: Sequence[int] = ()
    teacher_top_logprobs: Sequence[float] = ()
    beta: float | None = None
    coin: float | None = None
    kappa: int | None = None
    valid: bool = True
    action_error: str = ""
    reward: float = 0.0
    finish_reason: str = "stop"
    policy_version: int = 0
    temperature: float | None = None
    top_p: float | None = None
    num_cut_chars: int = 0
    num_teacher_prompt_tokens: int = 0
    num_teacher_response_tokens: int = 0
    wall_time_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Episode:
    """The record of one rollout."""

    round_index: int
    episode_index: int
    task_id: str
    stop_reason: StopReason
    turns: Sequence[Turn]
    teacher_id: str = ""
    engine: str = ""
    chat_template_hash: str = ""
    error: str = ""
    wall_time_s: float = 0.0

    @property
    def solved(self) -> bool:
        return self.stop_reason is StopReason.SOLVED

    @property
    def num_labels(self) -> int:
        return sum(turn.label_ids is not None for turn in self.turns)

    @property
    def num_label_errors(self) -> int:
        return sum(bool(turn.label_error) for turn in self.turns)

    def prompt_ids(self, turn_index: int) -> list[int]:
        """Token ids that stood before the response of a turn, rebuilt from the prefix that each turn extends."""
        ids: list[int] = []
        for turn in self.turns[: turn_index + 1]:
            ids = list(turn.context_ids) if turn.starts_branch else ids + list(turn.context_ids)
            if turn.turn_index < turn_index:
                ids += turn.response_ids
        return ids


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One tokenised training item: a tree of tokens in depth-first order, and the weight of each token.

    All arrays have the shape (num_tokens,). `position_ids` counts from the root; `parent` is the place of the token
    before (-1 at a root); `subtree_end` is the place after a token's last descendant, so that token i sees token j
    exactly when ``j <= i < subtree_end[j]``. `ce_weight` is the weight of predicting the token from its parent.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    parent: np.ndarray
    subtree_end: np.ndarray
    ce_weight: np.ndarray
    episode_indices: tuple[tuple[int, int], ...] = ()
    """The (round, episode) pairs that the tree was made of."""

    def __len__(self) -> int:
        return len(self.input_ids)
