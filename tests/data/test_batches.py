"""From trees to tensors: masks, padding, micro-batches, shares of processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dagger_exp.data.batches import Batch, group_by_length, make_batch, pad_trees
from dagger_exp.data.prefix_tree import Row, grow
from dagger_exp.errors import DataError
from dagger_exp.types import Example

PAD = 0


def chain(num_tokens: int, first: int = 5) -> Example:
    """Return a tree without a branch: a prompt, and a label of its last token."""
    ids = list(range(first, first + num_tokens))
    (tree,) = grow([Row(ids[:-1], ids[-1:], [1.0])], 10_000)
    return tree


def test_attention_mask_against_a_table_written_by_hand() -> None:
    """A tree with a label 12 14 beside the executed 12 13, then 15 and the label 17 18; below it a shorter one."""
    rows = [Row([10, 11], [12, 14], [1.0, 1.0]), Row([10, 11, 12, 13, 15], [17, 18], [1.0, 1.0])]
    batch = pad_trees([*grow(rows, 100), chain(3)], PAD)
    tree = """
        10000000
        11000000
        11100000
        11110000
        11101000
        11101100
        11101110
        11101111
    """
    padded = """
        10000000
        11000000
        11100000
        00010000
        00001000
        00000100
        00000010
        00000001
    """
    assert batch.attention_mask().shape == (2, 1, 8, 8)
    assert batch.attention_mask().dtype == torch.bool
    for found, table in zip(batch.attention_mask()[:, 0], (tree, padded), strict=True):
        assert ["".join(str(int(sees)) for sees in row) for row in found] == table.split()


def test_targets_are_predicted_by_their_parents() -> None:
    """Token 14 is the fourth of its tree and 13 the fifth, but both follow 12, which is the third."""
    rows = [Row([10, 11, 12], [14], [0.5]), Row([10, 11, 12], [13], [2.0])]
    batch = pad_trees([chain(5), *grow(rows, 100)], PAD)
    found = zip(batch.target_rows, batch.target_parents, batch.target_ids, batch.target_weights, strict=True)
    assert [tuple(float(value) for value in target) for target in found] == [
        (0, 3, 9, 1),
        (1, 2, 14, 0.5),
        (1, 2, 13, 2),
    ]
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [10, 11, 12, 14, 13]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 3]]


@given(st.lists(st.integers(2, 30), min_size=1, max_size=20), st.integers(1, 80))
def test_groups_hold_every_tree_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    groups = group_by_length([chain(length) for length in lengths], max_tokens)
    assert sorted(len(tree) for group in groups for tree in group) == sorted(lengths)
    for group in groups:
        assert len(group) == 1 or len(group) * max(map(len, group)) <= max_tokens


def ranks_of(lengths: list[list[int]], max_tokens: int) -> list[Batch]:
    shares = [[chain(length, first=100 * r) for length in share] for r, share in enumerate(lengths)]
    return [make_batch(shares, rank, max_tokens, PAD, num_episodes=4) for rank in range(len(shares))]


@given(st.lists(st.lists(st.integers(2, 12), max_size=8), min_size=2, max_size=3), st.integers(1, 40))
def test_ranks_share_a_batch(lengths: list[list[int]], max_tokens: int) -> None:
    """As many micro-batches each, no weight twice, and the same totals everywhere; a rank may have no tree at all."""
    if not any(lengths):
        lengths[0].append(3)
    ranks = ranks_of(lengths, max_tokens)
    assert len({len(batch.micro_batches) for batch in ranks}) == 1
    assert {(b.total_weight, b.num_tokens, b.num_episodes) for b in ranks} == {
        (sum(map(len, lengths)), sum(map(sum, lengths)), 4)
    }
    for batch, share in zip(ranks, lengths, strict=True):
        assert sum(float(m.target_weights.sum()) for m in batch.micro_batches) == len(share)


def test_a_rank_fills_up_with_the_cheapest_tree() -> None:
    ranks = ranks_of([[12, 12, 9], [4]], max_tokens=12)
    assert [m.input_ids.numel() for m in ranks[1].micro_batches] == [4, 4, 4]
    assert [float(m.target_weights.sum()) for m in ranks[1].micro_batches] == [1, 0, 0]


def test_a_batch_without_a_trainable_token_is_refused() -> None:
    unweighted = grow([Row([5], [6], [0.0])], 10)
    for shares in ([[], []], [unweighted, []]):
        with pytest.raises(DataError, match="a batch of 2 episodes has no trainable token"):
            make_batch(shares, 0, 64, PAD, num_episodes=2)


def test_a_batch_moves_to_a_device_whole() -> None:
    (batch, _) = ranks_of([[4, 3], [3]], max_tokens=8)
    moved = batch.to(torch.device("meta"))
    tensors = [getattr(m, name) for m in moved.micro_batches for name in m.__dataclass_fields__]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.total_weight, moved.num_tokens, moved.num_episodes) == (3, 10, 4)
