"""Tokens generated in process, by the very module that trains (no copy of the weights).

The episodes of a batch advance in lock-step: its members are told, and the engine generates for a turn once each of
them that asks at this turn or before waits for it or is over, however long a teacher or an env keeps some. Without
members, requests that are waiting when nothing else can run are answered together. A row's draw is a pure function of
its key, so it depends on the other rows only through floating-point rounding; members are fixed, and rows in the order
of their keys, for that reason.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dagger_exp.engines.scoring import generating, score
from dagger_exp.errors import EngineError, check_at_least
from dagger_exp.protocols import Generation, Sampling, Scores
from dagger_exp.seeding import uniform
from dagger_exp.types import Key


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One prompt that waits for its batch."""

    prompt_ids: Sequence[int]
    sampling: Sampling
    answer: asyncio.Future[Generation]
    since: float

    @property
    def turn(self) -> int:
        return self.sampling.key.turn_index if self.sampling.key else 0

    @property
    def episode(self) -> Key | None:
        return self.sampling.key._replace(turn_index=-1) if self.sampling.key else None


class HfEngine:
    """Generates with the Hugging Face causal language model that `load_weights` hands over.

    Args:
        end_id: token id that ends a message; so does each `eos_token_id` of the model's generation config, as in vLLM.
        pad_id: token id for padding.
        max_batch_size: largest number of rows in one forward pass.

    Raises:
        ConfigError: a batch would hold nobody.
    """

    id, address = "hf", ""
    is_lock_step = True

    def __init__(self, *, end_id: int, pad_id: int, max_batch_size: int = 256) -> None:
        check_at_least(1, "engine", max_batch_size=max_batch_size)
        self.model: Any = None
        self.end_id, self.pad_id, self.max_batch_size = end_id, pad_id, max_batch_size
        self.end_ids = {end_id}
        self.version = 0
        self._waiting: list[Request] = []
        self._members: dict[Key, asyncio.Task[Any]] = {}
        self._next_turn: Callable[[Key], float] = lambda key: 0
        self._next_turns: dict[Key, float] = {}
        self._patience_s = math.inf

    def load_weights(self, version: int, weights: torch.nn.Module) -> None:
        """Generate with this module from now on; its weights are used as they are at the time of a request."""
        self.model, self.version = weights, version
        self.end_ids = {self.end_id, *_eos_ids(self.model.generation_config.eos_token_id)}

    @contextmanager
    def members(
        self, tasks: Mapping[Key, asyncio.Task[Any]], next_turn: Callable[[Key], float], patience_s: float
    ) -> Iterator[None]:
        """Generate for a turn when each of these episodes, not one of which has begun, waits, asks later or is over.

        What waits longer than `patience_s` is answered without the others: one that hangs is to cost no other its turn.
        """
        self._members, self._next_turn, self._patience_s = dict(tasks), next_turn, patience_s
        self._next_turns = {key: next_turn(key) for key in tasks}
        for task in tasks.values():
            task.add_done_callback(lambda _: self._flush())
        try:
            yield
        finally:
            self._members = {}

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Return a response to a prompt; `logprobs` are those of the tempered distribution (T = 1 when greedy)."""
        loop = asyncio.get_running_loop()
        request = Request(prompt_ids, sampling, loop.create_future(), loop.time())
        self._waiting.append(request)
        if sampling.key and (episode := request.episode) in self._members and episode:
            self._next_turns[episode] = self._next_turn(sampling.key)
            loop.call_later(self._patience_s, self._flush)
        loop.call_soon(self._flush)  # runs after every episode that can run has come to its own request
        return await request.answer

    async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
        """Return the log-probabilities of given tokens."""
        return score(self.model, token_ids, num_top)

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Need nothing: the model is here."""
        return nullcontext()

    async def confirm(self) -> None:
        """Look at nothing: the weights are here."""

    def rest(self) -> None:
        """Leave the device to the trainer: the weights are its own, but not what the keys and values took."""
        torch.cuda.empty_cache()  # where there is no CUDA, nothing

    def close(self) -> None:
        """Free nothing: the weights are the trainer's."""

    def _flush(self) -> None:
        self._waiting = [request for request in self._waiting if not request.answer.done()]  # others were cancelled
        with _told(self._waiting):
            self._answer_due()

    def _answer_due(self) -> None:
        batch = sorted(self._due(), key=lambda request: request.sampling.key or ())
        self._waiting = [request for request in self._waiting if request not in batch]
        for begin in range(0, len(batch), self.max_batch_size):
            self._answer(batch[begin : begin + self.max_batch_size])
        if batch and self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)

    def _due(self) -> list[Request]:
        """Return who is to be answered now: of members those at the first turn, once no other is to come to it."""
        if not (self._members and self._waiting):
            return self._waiting
        turn = min(request.turn for request in self._waiting)
        due = [request for request in self._waiting if request.turn == turn]
        to_come = self._members.keys() - {request.episode for request in self._waiting}
        is_missing = any(self._next_turns[key] <= turn and not self._members[key].done() for key in to_come)
        is_late = asyncio.get_running_loop().time() - min(request.since for request in due) >= self._patience_s
        return [] if is_missing and not is_late else due

    def _answer(self, batch: list[Request]) -> None:
        with _told(batch):
            for request, generation in zip(batch, self._generate(batch), strict=True):
                request.answer.set_result(generation)

    def _generate(self, batch: list[Request]) -> list[Generation]:
        with generating(self.model):
            input_ids, mask = self._left_padded([request.prompt_ids for request in batch])
            rows = Rows(batch, self.end_ids)
            position_ids = (mask.cumsum(1) - 1).clamp(min=0)
            cache = None
            while True:
                output = self.model(
                    input_ids=input_ids,
                    attention_mask=mask,
                    position_ids=position_ids,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                tokens = rows.draw(output.logits[:, -1].float())
                if rows.all_finished:
                    return rows.generations(self.version)
                cache = output.past_key_values
                input_ids = tokens[:, None]
                mask = torch.cat([mask, mask.new_ones(len(batch), 1)], dim=1)
                position_ids = position_ids[:, -1:] + 1

    def _left_padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return ids and mask, both (num_rows, longest prompt)."""
        width, device = max(map(len, prompts)), next(self.model.parameters()).device
        ids = torch.full((len(prompts), width), self.pad_id)
        mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        return ids.to(device), mask.to(device)


@contextmanager
def _told(requests: Sequence[Request]) -> Iterator[None]:
    """Have requests fail with what is raised, since nobody hears what a callback raises."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it was, the episodes that wait must hear of it
        for request in requests:
            if not request.answer.done():
                request.answer.set_exception(EngineError(f"hf engine: {type(error).__name__}: {error}"))


class Rows:
    """The responses of a batch while they grow, token by token."""

    def __init__(self, batch: list[Request], end_ids: set[int]) -> None:
        self.samplings = [request.sampling for request in batch]
        self.end_ids = end_ids
        self.token_ids: list[list[int]] = [[] for _ in batch]
        self.logprobs: list[list[float]] = [[] for _ in batch]
        self.unfinished = set(range(len(batch)))

    @property
    def all_finished(self) -> bool:
        return not self.unfinished

    def draw(self, logits: Tensor) -> Tensor:
        """Append one token to every unfinished row; logits (num_rows, vocabulary) -> token ids (num_rows,)."""
        temperature = torch.tensor([s.temperature or 1.0 for s in self.samplings], device=logits.device)
        logprobs = torch.log_softmax(logits / temperature[:, None], dim=-1)
        tokens = logprobs.argmax(dim=-1)
        sampled = [row for row in sorted(self.unfinished) if self.samplings[row].temperature > 0]
        if sampled:
            tokens[sampled], mass = _sample(
                logprobs[sampled].exp(),
                torch.tensor([self._coin(row) for row in sampled], dtype=torch.float64, device=logits.device),
                torch.tensor([self.samplings[row].top_p for row in sampled], device=logits.device),
            )
            logprobs[sampled] -= mass.log().to(logprobs.dtype)[:, None]
        values = logprobs.gather(1, tokens[:, None])[:, 0].tolist()
        for row, token in enumerate(tokens.tolist()):
            if row in self.unfinished:
                self._append(row, token, values[row])
        return tokens

    def generations(self, version: int) -> list[Generation]:
        return [
            Generation(ids, logprobs, "stop" if ids[-1] in self.end_ids else "length", version)
            for ids, logprobs in zip(self.token_ids, self.logprobs, strict=True)
        ]

    def _append(self, row: int, token: int, logprob: float) -> None:
        self.token_ids[row].append(token)
        self.logprobs[row].append(logprob)
        if token in self.end_ids or len(self.token_ids[row]) >= self.samplings[row].max_new_tokens:
            self.unfinished.discard(row)

    def _coin(self, row: int) -> float:
        key = self.samplings[row].key
        if key is None:
            raise EngineError("sampling at a temperature above 0 needs a key, so that the draw can be repeated.")
        return uniform(key, f"token {len(self.token_ids[row])}")


def _eos_ids(eos_token_id: int | list[int] | None) -> list[int]:
    """Return what a generation config holds as a list."""
    return [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or ())


def _sample(probabilities: Tensor, coins: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Invert the cumulative distribution at each coin, over the smallest set of tokens that holds `top_p`.

    Returns the tokens (num_rows,) and what that set holds (num_rows,), 1 where nothing was left out.

    Args:
        probabilities: (num_rows, vocabulary).
        coins: (num_rows,) in [0, 1).
        top_p: (num_rows,) in (0, 1].
    """
    ordered, order = probabilities.double().sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = torch.where(before < top_p[:, None], ordered, 0.0)
    cumulative = kept.cumsum(dim=-1)
    place = torch.searchsorted(cumulative, coins[:, None] * cumulative[:, -1:], right=True)
    last = (kept > 0).sum(dim=-1, keepdim=True) - 1
    return order.gather(1, place.minimum(last))[:, 0], torch.where(top_p < 1, cumulative[:, -1], 1.0)
