"""The batches of one round: an order that is a pure function of (seed, round, place), so a resume repeats nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any

import numpy as np

from dagger_exp.data.batches import Batch, make_batch
from dagger_exp.data.prefix_tree import grow
from dagger_exp.data.selection import label_rows
from dagger_exp.errors import DataError
from dagger_exp.seeding import draw
from dagger_exp.store.reader import RoundReader
from dagger_exp.types import Example, Key

CACHED_EPISODES = 4096


class RoundLoader:
    """Yields `num_batches` batches of `batch_size` episodes, permutation after permutation of those that are kept.

    It has the state of a stateful loader (`state_dict`, `load_state_dict`): the number of batches that were taken.

    Args:
        reader: the rounds that are aggregated.
        kept: indices into the reader of the episodes that are trained on, (num_kept,).
        key: decides the order, with its seed and its round.
        num_batches: optimizer steps of one pass.
        batch_size: episodes of the global batch.
        first: number of episodes of this round that earlier passes have taken.
        max_tree_tokens: longer trees are cut.
        max_tokens: padded tokens of a micro-batch.
        normalize: what has weight 1: `token`, `turn` or `episode`.
        pad_id: token id for padding.
        rank: of this process.
        num_processes: among which each batch is shared.

    Raises:
        DataError: no episode with a label is left.
    """

    def __init__(
        self,
        reader: RoundReader,
        kept: np.ndarray,
        *,
        key: Key,
        num_batches: int,
        batch_size: int,
        first: int = 0,
        max_tree_tokens: int,
        max_tokens: int,
        normalize: str,
        pad_id: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        if not len(kept):
            raise DataError(
                f"round {key.round_index} has no trainable token: no episode passes the filter with a label;"
                " loosen filter.keep or choose another labeler."
            )
        if batch_size < num_processes:
            raise DataError(f"rounds.batch_size={batch_size} leaves some of {num_processes} processes without work.")
        self.reader, self.kept, self.key = reader, kept, key
        self.num_batches, self.batch_size, self.first = num_batches, batch_size, first
        self.max_tokens, self.pad_id = max_tokens, pad_id
        self.rank, self.num_processes = rank, num_processes
        self.num_taken = 0
        # Of functions that do not hold the loader, or it would live on in a circle, with its trees and open files.
        self._trees = lru_cache(CACHED_EPISODES)(partial(_grow, reader, normalize, max_tree_tokens))
        self._order = lru_cache(2)(partial(_permutation, key, kept))

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Batch]:
        begin, self.num_taken = self.num_taken, 0  # a second pass begins anew; a resumed one goes on
        for step in range(begin, self.num_batches):
            batch = self.batch(step)
            self.num_taken = step + 1
            yield batch
        self.num_taken = 0

    def state_dict(self) -> dict[str, Any]:
        return {"num_taken": self.num_taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_taken = state["num_taken"]

    def batch(self, step: int) -> Batch:
        """Return one batch; raises `DataError` where it holds no trainable token."""
        indices = self.episode_indices(step)
        shares = [
            [tree for index in indices[rank :: self.num_processes] for tree in self._trees(index)]
            for rank in range(self.num_processes)
        ]
        return make_batch(shares, self.rank, self.max_tokens, self.pad_id, len(indices))

    def episode_indices(self, step: int) -> list[int]:
        """Return which episodes of the reader a step trains on."""
        places = range(self.first + step * self.batch_size, self.first + (step + 1) * self.batch_size)
        return [int(self._order(place // len(self.kept))[place % len(self.kept)]) for place in places]


def _permutation(key: Key, kept: np.ndarray, cycle: int) -> np.ndarray:
    bits = draw(key._replace(episode_index=cycle), "batch order")
    return np.random.Generator(np.random.PCG64(bits)).permutation(kept)


def _grow(reader: RoundReader, normalize: str, max_tree_tokens: int, index: int) -> list[Example]:
    return grow(label_rows(reader.episode(index), normalize), max_tree_tokens)
