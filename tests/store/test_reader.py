from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from dagger_exp.errors import StoreError
from dagger_exp.store import compaction
from dagger_exp.store.compaction import compact
from dagger_exp.store.reader import RoundFile, RoundReader
from dagger_exp.store.schema import to_table
from dagger_exp.store.view import by_episode
from dagger_exp.types import StopReason


@pytest.fixture
def closed(store, make_episode):
    """Give a store of two closed rounds, with 3 and 2 episodes."""
    store.commit(make_episode(0))
    store.commit(make_episode(1, num_turns=0, stop_reason=StopReason.ENGINE))
    store.commit(make_episode(2, num_turns=5, stop_reason=StopReason.UNSOLVED))
    store.close_round(0, 3, {})
    store.commit(make_episode(0, round_index=1, num_turns=1, task_id="other"))
    store.commit(make_episode(1, round_index=1))
    store.close_round(1, 2, {})
    return store


def test_the_index_tells_of_all_rounds_in_order(closed) -> None:
    reader = closed.read(*closed.rounds())
    assert len(reader) == 5
    assert reader.num_turns.tolist() == [3, 0, 5, 1, 3]
    assert reader.num_labels.tolist() == [2, 0, 3, 1, 2]
    assert reader.stop_reasons.tolist() == ["solved", "engine", "unsolved", "solved", "solved"]
    assert reader.solved.tolist() == [True, False, False, True, True]
    assert reader.task_ids.tolist() == ["task-0", "task-1", "task-2", "other", "task-1"]


def test_episodes_come_in_the_order_asked_for(closed, make_episode) -> None:
    reader = closed.read(0, 1)
    episodes = reader.episodes([4, 0, 0, 1])
    assert episodes == [
        make_episode(1, round_index=1),
        make_episode(0),
        make_episode(0),
        make_episode(1, num_turns=0, stop_reason=StopReason.ENGINE),
    ]
    assert reader.episodes(np.array([2])) == [reader.episode(2)]


@pytest.mark.parametrize("index", [-1, 5])
def test_an_episode_that_is_not_there_is_an_index_error(closed, index) -> None:
    with pytest.raises(IndexError):
        closed.read(0, 1).episode(index)


def test_a_reader_of_no_rounds_is_empty(closed) -> None:
    reader = closed.read()
    assert (len(reader), reader.solved.tolist(), reader.task_ids.tolist()) == (0, [], [])


@pytest.mark.parametrize(("bound", "num_groups"), [("ROW_GROUP_TURNS", 6), ("ROW_GROUP_TOKENS", 24)])
def test_row_groups_hold_whole_episodes(tmp_path, make_episode, monkeypatch, bound, num_groups) -> None:
    monkeypatch.setattr(compaction, bound, 20)
    episodes = [make_episode(index, num_turns=index % 5) for index in range(60)]
    together = by_episode(to_table("run", episodes))
    compact(tmp_path / "episodes.parquet", together.values())
    file = pq.ParquetFile(tmp_path / "episodes.parquet")
    groups = [file.read_row_group(g)["episode_index"].to_pylist() for g in range(file.num_row_groups)]
    assert len(groups) == num_groups
    assert sum(len(set(group)) for group in groups) == 60
    reader = RoundReader([RoundFile(tmp_path / "episodes.parquet")])
    assert reader.episodes(range(60)) == episodes


def test_any_reader_of_parquet_counts_the_turns(closed) -> None:
    table = pq.read_table(closed.parquet_path(0))
    assert (table.num_rows, table["turn_index"].null_count) == (9, 1)
    assert table["has_label"].to_pylist()[:5] == [True, False, True, None, True]
    assert set(table["run_id"].to_pylist()) == {"run-a"}


def test_an_open_round_is_not_read(store, make_episode) -> None:
    store.commit(make_episode(0))
    with pytest.raises(StoreError, match=r"manifest\.json"):
        store.read(0)


@pytest.mark.parametrize("damage", ["missing", "truncated", "page", "replaced", "no column"])
def test_a_damaged_file_is_named(closed, damage) -> None:
    path = closed.parquet_path(0)
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-10])
    elif damage == "page":
        content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
        path.write_bytes(content)
    elif damage == "replaced":
        path.write_bytes(closed.parquet_path(1).read_bytes())
    else:
        pq.write_table(pq.read_table(path).drop_columns(["task_id"]), path)
    with pytest.raises(StoreError, match=str(path)):
        closed.read(0).episode(0)
    with pytest.raises(StoreError, match=str(path)):
        closed.verify(0)


def test_one_flipped_bit_is_found(closed) -> None:
    path = closed.parquet_path(0)
    content = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    assert column.path_in_schema == "run_id", "a column that reading an episode does not touch"
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match="manifest describes"):
        closed.verify(0)


def test_the_manifest_holds_plain_json(closed) -> None:
    assert json.loads(closed.manifest_path(0).read_text()) == closed.manifest(0)
