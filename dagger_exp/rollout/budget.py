"""What may the teacher cost? Counted as it is spent, refused before it is exceeded."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from operator import add
from pathlib import Path

from dagger_exp.errors import BudgetError, ConfigError
from dagger_exp.store.files import read_json, write_json
from dagger_exp.store.view import StoreView
from dagger_exp.types import Actor, Episode, Usage

MILLION = 1_000_000
SAVED_EVERY_S = 10.0
TEACHER_COUNTS = ("num_teacher_prompt_tokens", "num_teacher_response_tokens", "num_teacher_queries")
"""The fields of a `Usage`, as metrics name them."""


@dataclass(kw_only=True)
class TeacherBudget:
    """Tokens and money per round and per run; None is no limit.

    The cost of a request is known when it is answered, so each request under way may overdraw the budget once. Every
    request counts, also one of an attempt that failed, of an episode that the round drops, or without a usable answer.

    Args:
        tokens_per_round: prompt and response tokens, as the teacher's server counts them.
        tokens_per_run: of all rounds.
        cost_per_round: in the currency of the prices.
        cost_per_run: of all rounds.
        prompt_price: of a million tokens.
        response_price: of a million tokens.
    """

    tokens_per_round: int | None = None
    tokens_per_run: int | None = None
    cost_per_round: float | None = None
    cost_per_run: float | None = None
    prompt_price: float = 0.0
    response_price: float = 0.0
    in_round: Usage = field(default=Usage(), init=False)
    before: Usage = field(default=Usage(), init=False)
    _path: Path | None = field(default=None, init=False)
    _saved: Usage = field(default=Usage(), init=False)
    _saved_at: float = field(default=-math.inf, init=False)

    def begin(self, store: StoreView, round_index: int) -> None:
        """Begin a round, or go on with one: with what its episodes have used, or more that was saved beside them."""
        self._path = store.episodes_folder(round_index) / "teacher_usage.json"  # goes when the round is closed
        self._saved = _read(self._path) if self._path.exists() else Usage()
        of_episodes = usage_of(store.committed_episodes(round_index))
        self.before, self.in_round = _used_before(store, round_index), _most(of_episodes, self._saved)

    def save(self) -> None:
        """Write what the round has used: attempts that failed are in no episode, and failures are played again."""
        usage, self._saved_at = self.in_round, time.monotonic()
        if self._path is not None and usage != self._saved:
            write_json(self._path, asdict(usage))
            self._saved = usage

    def ask(self) -> None:
        """Count a request that is about to be sent; raises `BudgetError` where nothing more may be spent."""
        if (name := self.spent) is not None:
            raise BudgetError(f"teacher_budget.{name} is spent.")
        self.in_round = added(self.in_round, Usage(num_queries=1))

    def spend(self, usage: Usage, told_by: str = "") -> None:
        """Count what a request has cost; now and then on the disk, too, since a kill may come before a commit.

        Args:
            usage: of the request.
            told_by: the server that answered.

        Raises:
            ConfigError: there is a limit, and the server does not tell what counts towards it.
        """
        if told_by and self._is_limited and not num_tokens(usage):
            raise ConfigError(
                f"{told_by} does not tell how many tokens an answer has used, so that no teacher_budget can be kept: "
                "set its limits to null, or choose a server that tells."
            )
        self.in_round = added(self.in_round, usage)
        if time.monotonic() - self._saved_at > SAVED_EVERY_S:
            self.save()

    def cost(self, usage: Usage) -> float:
        """Return money for tokens."""
        prompt, response = usage.num_prompt_tokens, usage.num_response_tokens
        return (prompt * self.prompt_price + response * self.response_price) / MILLION

    def metrics(self) -> dict[str, float]:
        """Return what the round has cost, with attempts that failed and episodes that it drops."""
        counts = zip(TEACHER_COUNTS, astuple(self.in_round), strict=True)
        return {f"rollout/{name}": count for name, count in counts} | {"rollout/teacher_cost": self.cost(self.in_round)}

    @property
    def spent(self) -> str | None:
        """Return the name of a limit that is reached, None while there is none."""
        run = added(self.before, self.in_round)
        reached = {
            "tokens_per_round": (num_tokens(self.in_round), self.tokens_per_round),
            "tokens_per_run": (num_tokens(run), self.tokens_per_run),
            "cost_per_round": (self.cost(self.in_round), self.cost_per_round),
            "cost_per_run": (self.cost(run), self.cost_per_run),
        }
        names = [name for name, (used, limit) in reached.items() if limit is not None and used >= limit]
        return names[0] if names else None

    @property
    def _is_limited(self) -> bool:
        """Whether any limit is set."""
        limits = (self.tokens_per_round, self.tokens_per_run, self.cost_per_round, self.cost_per_run)
        return any(limit is not None for limit in limits)


def added(one: Usage, other: Usage) -> Usage:
    """Return the sum of two usages."""
    return Usage(*map(add, astuple(one), astuple(other)))


def num_tokens(usage: Usage) -> int:
    """Return all tokens of a usage."""
    return usage.num_prompt_tokens + usage.num_response_tokens


def usage_of(episodes: Sequence[Episode]) -> Usage:
    """Return what the teacher's part in recorded turns has cost at least."""
    turns = [turn for episode in episodes for turn in episode.turns]
    asked = [turn for turn in turns if turn.actor is Actor.TEACHER or turn.label_ids is not None or turn.label_error]
    return Usage(
        sum(turn.num_teacher_prompt_tokens for turn in turns),
        sum(turn.num_teacher_response_tokens for turn in turns),
        len(asked),
    )


def _used_before(store: StoreView, round_index: int) -> Usage:
    """Return what the rounds before this one have used."""
    counts = [store.manifest(closed)["counts"] for closed in range(round_index)]
    return Usage(*(sum(int(count.get(f"rollout/{name}", 0)) for count in counts) for name in TEACHER_COUNTS))


def _read(path: Path) -> Usage:
    return Usage(**read_json(path, "delete it, and only what committed episodes have used is counted"))


def _most(one: Usage, other: Usage) -> Usage:
    return Usage(*map(max, astuple(one), astuple(other)))
