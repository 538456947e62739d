from __future__ import annotations

import json
import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dagger_exp.errors import StoreError
from dagger_exp.store.store import Store
from dagger_exp.types import StopReason


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_committed_is_there_after_reopening(store, folder, make_episode) -> None:
    [summary] = store.commit(make_episode(4))
    store.commit(make_episode(1, num_turns=0, stop_reason=StopReason.SANDBOX, error="no sandbox"))
    committed = Store(folder, "run-a").committed(0)
    assert list(committed) == [1, 4]
    assert committed[4] == summary
    assert (summary.num_turns, summary.num_labels, summary.task_id) == (3, 2, "task-4")
    assert (committed[1].num_turns, committed[1].stop_reason) == (0, StopReason.SANDBOX)


def test_a_closed_round_tells_the_same_as_the_open_one(store, make_episode) -> None:
    for index in range(3):
        store.commit(make_episode(index, num_turns=index))
    before = store.committed(0)
    store.close_round(0, 3, {})
    assert store.committed(0) == before


def test_the_manifest_counts_what_the_round_holds(store, make_episode) -> None:
    for index in range(4):
        store.commit(make_episode(index, num_turns=index))
    store.commit(make_episode(9))
    manifest = store.close_round(0, 4, {"num_drifts": 2})
    assert manifest["num_episodes"] == 4
    assert (manifest["num_turns"], manifest["num_labels"], manifest["num_dropped"]) == (6, 4, 1)
    assert manifest["stop_reasons"] == {"solved": 4}
    assert manifest["counts"] == {"num_drifts": 2}
    assert (store.rounds(), store.next_round()) == ([0], 1)
    assert not store.episodes_folder(0).exists()
    store.verify(0)


def test_a_round_holds_what_was_committed_before_and_after_reopening(store, folder, make_episode) -> None:
    store.commit(make_episode(0), make_episode(1, num_turns=0))
    again = Store(folder, "run-a")
    again.commit(make_episode(2, num_turns=2))
    episodes = again.episodes(0, 3)
    again.close_round(0, 3, {})
    assert episodes == [make_episode(0), make_episode(1, num_turns=0), make_episode(2, num_turns=2)]
    assert again.read(0).episodes(range(3)) == episodes


def test_closing_twice_changes_nothing(store, folder, make_episode) -> None:
    store.commit(make_episode(0))
    manifest = store.close_round(0, 1, {})
    before = contents(folder)
    assert store.close_round(0, 1, {"other": 1}) == manifest
    assert contents(folder) == before


def test_later_commits_leave_closed_rounds_untouched(store, folder, make_episode) -> None:
    store.commit(make_episode(0))
    store.close_round(0, 1, {})
    before = contents(folder / "000")
    store.commit(make_episode(0, round_index=1))
    with pytest.raises(StoreError, match=r"round 0 .* is closed"):
        store.commit(make_episode(1))
    assert contents(folder / "000") == before


def test_the_next_round_is_the_first_that_is_open(store, make_episode) -> None:
    assert (store.rounds(), store.next_round()) == ([], 0)
    store.commit(make_episode(0, round_index=1))
    store.close_round(1, 1, {})
    assert (store.rounds(), store.next_round()) == ([1], 0)


def test_an_equal_episode_may_come_again_and_the_first_stays(store, folder, make_episode) -> None:
    episode = make_episode(0)
    store.commit(episode)
    before = contents(folder)
    slower = tuple(replace(turn, wall_time_s=9.0) for turn in episode.turns)
    store.commit(replace(episode, turns=slower, wall_time_s=30.0))
    assert contents(folder) == before


def test_an_episode_with_numbers_that_are_none_may_come_again(store, folder, make_episode) -> None:
    turn = replace(make_episode(0).turns[0], sampling_logprobs=(math.nan,))
    store.commit(make_episode(0, turns=(turn,)))
    Store(folder, "run-a").commit(make_episode(0, turns=(turn,)))


def test_of_one_index_twice_at_once_the_last_stays(store, make_episode) -> None:
    store.commit(make_episode(0, num_turns=1), make_episode(1), make_episode(0))
    store.close_round(0, 2, {})
    assert store.read(0).episodes(range(2)) == [make_episode(0), make_episode(1)]


def test_a_different_episode_of_the_same_index_is_refused(store, folder, make_episode) -> None:
    store.commit(make_episode(0))
    before = contents(folder)
    with pytest.raises(StoreError, match="different episode"):
        store.commit(make_episode(0, stop_reason=StopReason.UNSOLVED))
    assert contents(folder) == before


def test_what_is_committed_together_is_one_file_and_is_told_apart(store, folder, make_episode) -> None:
    summaries = store.commit(make_episode(7), make_episode(2, num_turns=0), make_episode(3))
    assert [path.name for path in store.committed_paths(0)] == ["000007.arrows"]
    assert pa.ipc.open_stream(store.committed_paths(0)[0]).read_all().num_rows == 7, "any reader of Arrow"
    assert list(Store(folder, "run-a").committed(0).items()) == [
        (2, summaries[1]),
        (3, summaries[2]),
        (7, summaries[0]),
    ]
    assert [(index, len(rows)) for index, rows in store.committed_tables(0).items()] == [(2, 1), (3, 3), (7, 3)]


def test_of_episodes_that_come_again_only_the_new_ones_are_written(store, folder, make_episode) -> None:
    store.commit(make_episode(0), make_episode(1))
    before = contents(folder)
    again = Store(folder, "run-a")
    again.commit(make_episode(1), make_episode(2))
    assert {path.name for path in again.committed_paths(0)} == {"000000.arrows", "000002.arrows"}
    assert contents(folder).items() > before.items()
    with pytest.raises(StoreError, match="different episode 1"):
        again.commit(make_episode(3), make_episode(1, stop_reason=StopReason.UNSOLVED))
    assert list(again.committed(0)) == [0, 1, 2]


def test_discarded_episodes_go_and_may_come_anew(store, folder, make_episode) -> None:
    store.commit(make_episode(0, stop_reason=StopReason.ENGINE), make_episode(1))
    store.commit(make_episode(2, stop_reason=StopReason.ENGINE))
    store.discard(0, {0, 2})
    assert list(Store(folder, "run-a").committed(0)) == [1]
    store.commit(make_episode(0), make_episode(2))
    assert [summary.stop_reason for summary in store.committed(0).values()] == [StopReason.SOLVED] * 3
    assert store.close_round(0, 3, {})["num_dropped"] == 0


def test_those_that_were_committed_with_a_discarded_episode_stay(store, folder, make_episode) -> None:
    store.commit(make_episode(0), make_episode(1), make_episode(2))
    store.discard(0, {1})
    assert Store(folder, "run-a").committed_episodes(0) == [make_episode(0), make_episode(2)]
    store.discard(0, {0, 2})
    assert not store.committed_paths(0)


def test_a_round_that_lacks_episodes_is_not_closed(store, make_episode) -> None:
    store.commit(make_episode(0))
    store.commit(make_episode(2))
    with pytest.raises(StoreError, match=r"lacks 1 of 3 episodes \(the first is 1\)"):
        store.close_round(0, 3, {})
    assert not store.is_closed(0)


def test_a_store_of_another_run_is_refused(store, folder) -> None:
    with pytest.raises(StoreError, match="run-a, not of run-b"):
        Store(folder, "run-b")


def test_a_store_can_be_read_without_knowing_its_run(store, folder, make_episode) -> None:
    store.commit(make_episode(0))
    leftover = store.episodes_folder(0) / "000001.arrows.1234.tmp"
    leftover.write_text("{")
    view = Store.open(folder)
    assert view.run_id == "run-a"
    assert list(view.committed(0)) == [0]
    assert leftover.exists(), "a reader must not touch what a writer may be writing"


@pytest.mark.parametrize("text", ['{"schema_version": 99, "run_id": "run-a"}', '{"schema', "[]", "", "\0"])
def test_another_version_or_a_damaged_store_json_is_refused(store, folder, text) -> None:
    (folder / "store.json").write_text(text)
    with pytest.raises(StoreError, match=r"store\.json"):
        Store(folder, "run-a")


def test_a_folder_without_a_store_is_not_opened_for_reading(folder) -> None:
    with pytest.raises(StoreError, match="rounds/ folder"):
        Store.open(folder)
    assert not folder.exists()


def test_a_manifest_of_another_version_is_refused(store, make_episode) -> None:
    manifest = store.close_round(0, 0, {})
    store.manifest_path(0).write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(StoreError, match="schema version 99"):
        store.read(0)


@pytest.mark.parametrize("damage", ["cut", "empty", "missing bytes", "other number"])
def test_a_damaged_episode_is_named(store, make_episode, damage) -> None:
    store.commit(make_episode(0))
    path = store.episodes_folder(0) / "000000.arrows"
    content = path.read_bytes()
    half, ids = len(content) // 2, np.array([0, 7, 1, 7, 2, 7], np.int32).tobytes()
    assert ids in content
    damaged = {
        "cut": content[:-20],
        "empty": b"",
        "missing bytes": content[:half] + content[half + 64 :],
        "other number": content.replace(ids, bytes(len(ids))),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(StoreError, match=r"000000\.arrows is damaged"):
        store.committed(0)
    again = Store(store.folder, store.run_id)
    with pytest.raises(StoreError, match=r"000000\.arrows is damaged"):
        again.close_round(0, 1, {})
    assert not list(store.folder.rglob("*.tmp"))


def test_an_unwritable_place_is_named_with_the_mend(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/rounds/store\.json cannot be written .* `paths\.`"):
        Store(tmp_path / "file" / "rounds", "run-a")


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Let every write beyond so many bytes fail with an OSError, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_half_written(store, folder, make_episode) -> None:
    store.commit(make_episode(0))
    before = contents(folder)
    with largest_file(100), pytest.raises(StoreError, match=r"000001\.arrows cannot be written .*free space"):
        store.commit(make_episode(1))
    with largest_file(100), pytest.raises(StoreError, match=r"episodes\.parquet cannot be written .*free space"):
        store.close_round(0, 1, {})
    assert contents(folder) == before
    store.commit(make_episode(1))
    assert store.close_round(0, 2, {})["num_episodes"] == 2
