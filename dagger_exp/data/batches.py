"""From trees to tensors: padding, the attention mask, micro-batches under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from dagger_exp.errors import DataError
from dagger_exp.types import Example

LIKE_LENGTH = 0.9
"""A tree at least this long, relative to the longest of its micro-batch, is padded to it; a shorter one is not."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Trees of like length, one per row; shapes are (num_rows, num_tokens) unless said."""

    input_ids: Tensor
    position_ids: Tensor
    subtree_end: Tensor
    target_rows: Tensor
    """(num_targets,) row of each token that has a weight."""
    target_parents: Tensor
    """(num_targets,) place in its row of the token before, whose logits predict it."""
    target_ids: Tensor
    """(num_targets,)"""
    target_weights: Tensor
    """(num_targets,)"""

    def to(self, device: torch.device) -> MicroBatch:
        """Return the same on a device."""
        return MicroBatch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def attention_mask(self) -> Tensor:
        """Return (num_rows, 1, num_tokens, num_tokens), true where the query (first) may see the key (second)."""
        place = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        not_after = place[None, None, :] <= place[None, :, None]
        return (not_after & (place[None, :, None] < self.subtree_end[:, None, :]))[:, None]


@dataclass(frozen=True, slots=True)
class Batch:
    """One optimizer step of this process.

    `total_weight`, `num_tokens` and `num_episodes` are those of the global batch, over all processes, so that the loss
    is normalised over it.
    """

    micro_batches: Sequence[MicroBatch]
    total_weight: float
    num_tokens: int
    num_episodes: int

    def to(self, device: torch.device, **kwargs: bool) -> Batch:
        """Return the same on a device; Lightning calls it."""
        return replace(self, micro_batches=[micro_batch.to(device) for micro_batch in self.micro_batches])


def make_batch(
    shares: Sequence[Sequence[Example]], rank: int, max_tokens: int, pad_id: int, num_episodes: int
) -> Batch:
    """Return the share of one process.

    Args:
        shares: the trees of every process; each knows all, so no communication is needed.
        rank: of this process.
        max_tokens: padded tokens of a micro-batch; a longer tree is a micro-batch of its own.
        pad_id: token id for padding.
        num_episodes: of the global batch.

    Raises:
        DataError: no token of the global batch has a weight.
    """
    trees = [tree for share in shares for tree in share]
    total_weight = float(sum(np.sum(tree.ce_weight) for tree in trees))
    if not total_weight > 0:
        raise DataError(f"a batch of {num_episodes} episodes has no trainable token: no label has a token.")
    plans = [group_by_length(share, max_tokens) for share in shares]
    micro_batches = [pad_trees(group, pad_id) for group in plans[rank]]
    # Every process makes as many backward passes, or the others would wait for ever: what lacks is of no weight.
    spare = pad_trees([min(trees, key=len)], pad_id)
    spare.target_weights.zero_()
    micro_batches += [spare] * (max(map(len, plans)) - len(micro_batches))
    return Batch(
        micro_batches,
        total_weight=total_weight,
        num_tokens=sum(map(len, trees)),
        num_episodes=num_episodes,
    )


def group_by_length(trees: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Return groups of like length whose padded size is at most `max_tokens`."""
    groups: list[list[Example]] = []
    for tree in sorted(trees, key=len, reverse=True):
        fits = bool(groups) and (len(groups[-1]) + 1) * len(groups[-1][0]) <= max_tokens
        if fits and len(tree) >= LIKE_LENGTH * len(groups[-1][0]):
            groups[-1].append(tree)
        else:
            groups.append([tree])
    return groups


def pad_trees(trees: Sequence[Example], pad_id: int) -> MicroBatch:
    """Return trees as tensors; a padding token sees and is seen by itself only."""
    width = max(map(len, trees))
    input_ids = np.full((len(trees), width), pad_id)
    position_ids = np.zeros((len(trees), width), dtype=np.int64)
    subtree_end = np.tile(np.arange(1, width + 1), (len(trees), 1))
    targets: list[tuple[np.ndarray, ...]] = []
    for row, tree in enumerate(trees):
        input_ids[row, : len(tree)] = tree.input_ids
        position_ids[row, : len(tree)] = tree.position_ids
        subtree_end[row, : len(tree)] = tree.subtree_end
        weights = np.asarray(tree.ce_weight)
        chosen = np.flatnonzero((weights != 0) & (np.asarray(tree.parent) >= 0))
        parents, ids = np.asarray(tree.parent)[chosen], np.asarray(tree.input_ids)[chosen]
        targets.append((np.full(len(chosen), row), parents, ids, weights[chosen]))
    rows, parents, ids, weights = (np.concatenate(column) for column in zip(*targets, strict=True))
    return MicroBatch(
        torch.from_numpy(input_ids),
        torch.from_numpy(position_ids),
        torch.from_numpy(subtree_end),
        torch.from_numpy(rows),
        torch.from_numpy(parents),
        torch.from_numpy(ids),
        torch.from_numpy(weights).float(),
    )
