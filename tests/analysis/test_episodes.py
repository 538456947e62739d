"""The evaluations of a run, as this version keeps them and as earlier ones did."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagger_exp.analysis.episodes import EVALUATE, episode_groups, evaluation_path
from dagger_exp.store.compaction import compact
from dagger_exp.store.reader import RoundFile
from dagger_exp.store.schema import to_table
from dagger_exp.store.store import Store
from dagger_exp.types import Episode, StopReason


def played(reason: StopReason) -> Episode:
    return Episode(3, 0, "task", reason, ())


def write_earlier(folder: Path) -> None:
    compact(folder / "eval" / "round_003.parquet", [to_table("run", [played(StopReason.TIMEOUT)])])


def write_now(folder: Path, *, is_closed: bool) -> None:
    store = Store(folder / "eval", "run")
    store.commit(played(StopReason.SOLVED))
    if is_closed:
        store.close_round(3, 1, {})


@pytest.mark.parametrize("is_earlier", [True, False])
@pytest.mark.parametrize("is_now", [True, False])
def test_an_evaluation_is_read_from_either_place_and_the_one_of_now_counts(
    tmp_path: Path, is_earlier: bool, is_now: bool
) -> None:
    if is_earlier:
        write_earlier(tmp_path)
    if is_now:
        write_now(tmp_path, is_closed=True)
    reasons = ["solved"] if is_now else ["timeout"] if is_earlier else []
    groups, complaints = episode_groups(tmp_path)
    assert complaints == []
    assert [(group.phase, group.round_index, *group.stop_reasons) for group in groups] == [
        (EVALUATE, 3, reason) for reason in reasons
    ]
    if reasons:
        assert list(RoundFile(evaluation_path(tmp_path, 3)).stop_reasons) == reasons


def test_an_evaluation_that_is_not_over_is_shown_as_open(tmp_path: Path) -> None:
    write_now(tmp_path, is_closed=False)
    [group], _ = episode_groups(tmp_path)
    assert (group.phase, group.round_index, group.is_open) == (EVALUATE, 3, True)
