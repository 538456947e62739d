"""Prefix trees hold every label once, and nothing is dropped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagger_exp.data.prefix_tree import Row, Tree, grow
from dagger_exp.data.selection import label_rows
from dagger_exp.errors import DataError
from dagger_exp.types import Episode, Example

MakeEpisode = Callable[..., Episode]
WHOLE = 10_000
"""A budget that cuts nothing."""


def test_a_small_tree_against_a_table_written_by_hand(make_episode: MakeEpisode) -> None:
    """Label 12 14 leaves the executed response 12 13 at its second token; label 17 18 replaces the last response."""
    episode = make_episode([([10, 11], [12, 13], [12, 14]), ([15], [16], [17, 18])], round_index=2, episode_index=7)
    (tree,) = grow(label_rows(episode, "token"), WHOLE)
    # fmt: off
    assert tree.input_ids.tolist() ==    [10, 11, 12, 14, 13, 15, 17, 18]
    assert tree.position_ids.tolist() == [ 0,  1,  2,  3,  3,  4,  5,  6]
    assert tree.parent.tolist() ==       [-1,  0,  1,  2,  2,  4,  5,  6]
    assert tree.subtree_end.tolist() ==  [ 8,  8,  8,  4,  8,  8,  8,  8]
    assert tree.ce_weight.tolist() ==    [ 0,  0,  1,  1,  0,  0,  1,  1]
    # fmt: on
    assert tree.episode_indices == ((2, 7),)


def test_the_label_of_a_turn_that_the_teacher_executed_lies_on_the_trunk(make_episode: MakeEpisode) -> None:
    executed = make_episode([([10], [12, 2], [12, 2]), ([13], [14, 2], [14, 2])])
    (tree,) = grow(label_rows(executed, "token"), WHOLE)
    assert tree.input_ids.tolist() == [10, 12, 2, 13, 14, 2]
    assert tree.parent.tolist() == [-1, 0, 1, 2, 3, 4]
    assert tree.ce_weight.tolist() == [0, 1, 1, 0, 1, 1]


def test_weights_of_the_same_label_add_up() -> None:
    rows = [Row([5], [6, 7], [1.0, 0.5], (0, 0)), Row([5], [6, 8], [0.25, 2.0], (0, 1)), Row([5], [6], [4.0], (0, 1))]
    (tree,) = grow(rows, WHOLE)
    assert dict(zip(tree.input_ids.tolist(), tree.ce_weight.tolist(), strict=True)) == {5: 0, 6: 5.25, 7: 0.5, 8: 2}
    assert tree.episode_indices == ((0, 0), (0, 1))


def test_a_cut_tree_repeats_only_the_prefix_that_its_rows_need(make_episode: MakeEpisode) -> None:
    """The first label's branch is not repeated, nor is a weight that the first tree holds already."""
    episode = make_episode([([10, 11], [12], [20, 21]), ([13], [14], [14]), ([15], [16], [16])])
    first, second = grow(label_rows(episode, "token"), max_tokens=7)
    assert first.input_ids.tolist() == [10, 11, 20, 21, 12, 13, 14]
    assert first.ce_weight.tolist() == [0, 0, 1, 1, 0, 0, 1]
    assert second.input_ids.tolist() == [10, 11, 12, 13, 14, 15, 16]
    assert second.ce_weight.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_a_label_without_a_prompt_is_refused() -> None:
    with pytest.raises(DataError, match=r"episode \(3, 4\) has a label without a prompt"):
        grow([Row([], [6], [1.0], (3, 4))], WHOLE)


def test_a_row_whose_weights_do_not_fit_its_label_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        grow([Row([5], [6, 7], [1.0])], WHOLE)


few_tokens = st.lists(st.integers(0, 2), min_size=1, max_size=3)
"""An alphabet so small that prompts, responses and labels share much."""


@st.composite
def episodes(draw: st.DrawFn) -> list[tuple[list[int], list[int], list[int] | None, bool]]:
    """Draw turns as (context, response, label, starts a branch); many labels are the response, in whole or in part."""
    turns = []
    for t in range(draw(st.integers(1, 7))):
        response = draw(few_tokens)
        near = st.sampled_from([response, response[:1], [*response, 1], [*response[:-1], 2]])
        label = draw(st.none() | near | few_tokens)
        turns.append((draw(few_tokens), response, label, t == 0 or draw(st.integers(0, 9)) == 0))
    return turns


def build(make_episode: MakeEpisode, drawn: Sequence[tuple[list[int], list[int], list[int] | None, bool]]) -> Episode:
    episode = make_episode([turn[:3] for turn in drawn])
    turns = [replace(turn, starts_branch=new) for turn, (*_, new) in zip(episode.turns, drawn, strict=True)]
    return replace(episode, turns=turns)


many = st.lists(episodes(), min_size=1, max_size=3)
normalizations = st.sampled_from(["token", "turn", "episode"])


@given(many, normalizations, st.integers(1, 40))
def test_every_row_can_be_read_back_with_its_weights(
    make_episode: MakeEpisode, drawn: list, normalize: str, max_tokens: int
) -> None:
    """By walking the parents: the weight of a token with its whole prefix is what all rows together give it."""
    rows = [row for turns in drawn for row in label_rows(build(make_episode, turns), normalize)]
    expected: dict[tuple[int, ...], float] = defaultdict(float)
    for row in rows:
        for n, weight in enumerate(row.weights):
            expected[*row.prompt_ids, *row.label_ids[: n + 1]] += weight
    found: dict[tuple[int, ...], float] = defaultdict(float)
    for tree in grow(rows, max_tokens):
        for path, weight in weighted_paths(tree):
            found[path] += weight
    found = {path: weight for path, weight in found.items() if weight}
    assert found == pytest.approx(dict(expected))


def weighted_paths(tree: Example) -> Iterable[tuple[tuple[int, ...], float]]:
    """Yield what stands from the root to each token, and the token's weight."""
    paths: list[tuple[int, ...]] = []
    for token, parent, weight in zip(tree.input_ids, tree.parent, tree.ce_weight, strict=True):
        paths.append(((*paths[parent],) if parent >= 0 else ()) + (int(token),))
        yield paths[-1], float(weight)


@given(many, st.integers(1, 40))
def test_a_cut_tree_is_within_the_budget_unless_a_single_row_is_not(
    make_episode: MakeEpisode, drawn: list, max_tokens: int
) -> None:
    rows = [row for turns in drawn for row in label_rows(build(make_episode, turns), "token")]
    single = {(*row.prompt_ids, *row.label_ids) for row in rows}
    for tree in grow(rows, max_tokens):
        assert len(tree) <= max_tokens or tuple(tree.input_ids) in single


@given(many)
def test_an_uncut_tree_has_a_token_for_each_different_prefix(make_episode: MakeEpisode, drawn: list) -> None:
    rows = [row for turns in drawn for row in label_rows(build(make_episode, turns), "token")]
    whole = [(*row.prompt_ids, *row.label_ids) for row in rows]
    prefixes = {ids[:n] for ids in whole for n in range(1, len(ids) + 1)}
    assert sum(map(len, grow(rows, WHOLE))) == len(prefixes)


@given(many)
def test_a_token_sees_its_own_prefix_and_nothing_else(make_episode: MakeEpisode, drawn: list) -> None:
    rows = [row for turns in drawn for row in label_rows(build(make_episode, turns), "token")]
    for tree in grow(rows, WHOLE):
        place = np.arange(len(tree))
        sees = (place[None, :] <= place[:, None]) & (place[:, None] < tree.subtree_end[None, :])
        for i in range(len(tree)):
            above = [i]
            while tree.parent[above[-1]] >= 0:
                above.append(int(tree.parent[above[-1]]))
            assert np.flatnonzero(sees[i]).tolist() == above[::-1]
            assert tree.position_ids[i] == len(above) - 1


@given(many)
def test_num_new_is_what_an_insertion_adds(make_episode: MakeEpisode, drawn: list) -> None:
    tree = Tree()
    for row in [row for turns in drawn for row in label_rows(build(make_episode, turns), "token")]:
        expected = len(tree) + tree.num_new(row)
        tree.insert(row)
        assert len(tree) == expected
