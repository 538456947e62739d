"""Which episodes and turns are trained on, and how much each token counts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagger_exp.data.selection import FILTERS, EpisodeFilter, aggregated_rounds, label_rows
from dagger_exp.errors import ConfigError
from dagger_exp.types import Episode, StopReason

MakeEpisode = Callable[..., Episode]
MODEL = "solved unsolved max_turns context loop invalid_actions".split()
CUT = "timeout teacher deadline budget".split()


@pytest.mark.parametrize(
    ("keep", "round_index", "kept"),
    [
        ("all", 0, MODEL + CUT),
        ("finished", 0, ["solved", "unsolved"]),
        ("solved", 5, ["solved"]),
        ("warmup_solved", 1, ["solved"]),
        ("warmup_solved", 2, MODEL + CUT),
    ],
)
def test_what_a_filter_keeps(keep: str, round_index: int, kept: list[str]) -> None:
    keeps = EpisodeFilter(keep=keep, warmup_rounds=2)
    assert {str(reason) for reason in StopReason if keeps(round_index, reason)} == set(kept)


@pytest.mark.parametrize("keep", FILTERS)
@pytest.mark.parametrize("round_index", [0, 9])
def test_failures_of_infrastructure_are_never_kept(keep: str, round_index: int) -> None:
    failures = "sandbox engine interrupted".split()
    assert not any(EpisodeFilter(keep=keep)(round_index, StopReason(reason)) for reason in failures)
    assert not any(EpisodeFilter(keep=keep, keep_cut=False)(round_index, StopReason(reason)) for reason in CUT)
    assert {*failures, *CUT, *MODEL} == set(StopReason)  # a new reason must be put on one side


def test_aggregated_rounds() -> None:
    assert [*aggregated_rounds("union", 3, 2)] == [0, 1, 2, 3]
    assert [*aggregated_rounds("latest", 3, 2)] == [3]
    assert [*aggregated_rounds("window", 3, 2)] == [2, 3]
    assert [*aggregated_rounds("window", 0, 2)] == [0]


def test_rows_are_the_labelled_turns_in_their_context(make_episode: MakeEpisode) -> None:
    """Each prompt is the one that the record rebuilds; the executed response stands in the next one."""
    episode = make_episode([([1, 2], [3], [4, 5]), ([6], [7, 8], None), ([9], [10], [10])], episode_index=3)
    first, last = label_rows(episode, "token")
    assert (first.prompt_ids, first.label_ids) == ([1, 2], [4, 5])
    assert (last.prompt_ids, last.label_ids) == ([1, 2, 3, 6, 7, 8, 9], [10])
    assert [first.prompt_ids, last.prompt_ids] == [episode.prompt_ids(0), episode.prompt_ids(2)]
    assert first.episode == last.episode == (0, 3)


@pytest.mark.parametrize(
    ("normalize", "weights"),
    [
        ("token", [[1, 1], [1, 1, 1]]),
        ("turn", [[1 / 2, 1 / 2], [1 / 3, 1 / 3, 1 / 3]]),
        ("episode", [[1 / 5, 1 / 5], [1 / 5, 1 / 5, 1 / 5]]),
    ],
)
def test_normalisations(make_episode: MakeEpisode, normalize: str, weights: list[list[float]]) -> None:
    episode = make_episode([([1], [2], [3, 4]), ([5], [6], None), ([7], [8], [9, 9, 9])])
    assert [[*row.weights] for row in label_rows(episode, normalize)] == weights


@given(st.lists(st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=8))
def test_what_weighs_1(make_episode: MakeEpisode, labels: list[list[int] | None]) -> None:
    """The total is the number of label tokens, of labelled turns, or of episodes with a label."""
    episode = make_episode([([1], [2], label) for label in labels])
    totals = {n: sum(sum(row.weights) for row in label_rows(episode, n)) for n in ("token", "turn", "episode")}
    present = [label for label in labels if label is not None]
    assert totals["token"] == sum(map(len, present))
    assert totals["turn"] == pytest.approx(len(present))
    assert totals["episode"] == pytest.approx(1.0 if present else 0.0)


def test_a_choice_that_does_not_exist_is_refused_with_those_that_do(make_episode: MakeEpisode) -> None:
    with pytest.raises(ConfigError, match="'best'; choose one of all, finished, solved, warmup_solved"):
        EpisodeFilter(keep="best")
    with pytest.raises(ConfigError, match="'last'; choose one of union, latest, window"):
        aggregated_rounds("last", 0, 1)
    with pytest.raises(ConfigError, match="window is 0; it holds at least 1 round"):
        aggregated_rounds("window", 0, 0)
    with pytest.raises(ConfigError, match="'label'; choose one of token, turn, episode"):
        list(label_rows(make_episode([([1], [2], [3])]), "label"))
