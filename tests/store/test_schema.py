from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagger_exp.errors import StoreError
from dagger_exp.store.compaction import compact
from dagger_exp.store.reader import RoundFile, RoundReader
from dagger_exp.store.schema import SCHEMA, to_table
from dagger_exp.store.store import Store
from dagger_exp.store.view import read_table, table_to_bytes
from dagger_exp.types import Actor, Episode, StopReason, Turn

INDICES = st.integers(0, 2**31 - 1)
IDS = st.lists(INDICES, max_size=4).map(tuple)
FLOATS = st.floats(allow_nan=False)
TURNS = st.builds(
    Turn,
    turn_index=INDICES,
    actor=st.sampled_from(Actor),
    observation=st.text(),
    context_ids=IDS,
    starts_branch=st.booleans(),
    response_text=st.text(),
    response_ids=IDS,
    sampling_logprobs=st.lists(st.floats(width=32, allow_nan=False), max_size=4).map(tuple),
    label_text=st.none() | st.text(),
    label_ids=st.none() | IDS,
    beta=st.none() | FLOATS,
    coin=st.none() | FLOATS,
    kappa=st.none() | INDICES,
    valid=st.booleans(),
    reward=FLOATS,
    finish_reason=st.text(),
    policy_version=INDICES,
    temperature=st.none() | FLOATS,
    top_p=st.none() | FLOATS,
    wall_time_s=FLOATS,
)
EPISODES = st.builds(
    Episode,
    round_index=INDICES,
    episode_index=INDICES,
    task_id=st.text(),
    stop_reason=st.sampled_from(StopReason),
    turns=st.lists(TURNS, max_size=3).map(tuple),
    teacher_id=st.text(),
    engine=st.text(),
    chat_template_hash=st.text(),
    error=st.text(),
    wall_time_s=FLOATS,
)


def test_every_field_of_the_record_has_a_column() -> None:
    recorded = {field.name for record in (Episode, Turn) for field in fields(record)} - {"turns"}
    assert recorded | {"run_id", "schema_version", "has_label", "episode_wall_time_s"} == set(SCHEMA.names)


def test_columns_are_plain_so_that_datasets_reads_them() -> None:
    assert not any(isinstance(kind, pa.BaseExtensionType) for kind in SCHEMA.types)


@settings(max_examples=50)
@given(st.lists(EPISODES, min_size=1, max_size=4, unique_by=lambda episode: episode.episode_index))
def test_episodes_survive_a_commit(episodes: list[Episode]) -> None:
    episodes = [replace(episode, round_index=0) for episode in episodes]
    with tempfile.TemporaryDirectory() as folder:
        Store(Path(folder) / "rounds", "run").commit(*episodes)
        read = Store(Path(folder) / "rounds", "run").committed_episodes(0)
    assert read == sorted(episodes, key=lambda episode: episode.episode_index)
    assert all(type(episode.stop_reason) is StopReason for episode in read)
    assert all(type(turn.actor) is Actor for episode in read for turn in episode.turns)


@settings(max_examples=50)
@given(st.lists(EPISODES, min_size=1, max_size=4, unique_by=lambda episode: episode.episode_index))
def test_episodes_survive_parquet(episodes: list[Episode]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "episodes.parquet"
        compact(path, (to_table("run", [episode]) for episode in episodes))
        reader = RoundReader([RoundFile(path)])
        assert reader.episodes(range(len(reader))) == episodes
        assert reader.num_labels.tolist() == [episode.num_labels for episode in episodes]


def test_arrays_of_numpy_are_stored_as_the_numbers_they_hold(make_episode) -> None:
    episode = make_episode(0)
    arrays = replace(episode.turns[0], context_ids=np.array([0, 7]), sampling_logprobs=np.array([-0.5, -0.25]))
    arrays = replace(arrays, teacher_logprobs=np.array([-0.1, -math.inf], np.float32))
    first = replace(episode.turns[0], teacher_logprobs=(-0.1, -math.inf))
    episode = replace(episode, turns=(first, *episode.turns[1:]))
    of_arrays = replace(episode, turns=(arrays, *episode.turns[1:]))
    assert to_table("run", [of_arrays]).equals(to_table("run", [episode]))


def test_log_probabilities_that_are_no_numbers_are_kept(make_episode, store) -> None:
    turn = replace(
        make_episode(0).turns[0], teacher_logprobs=(-math.inf, -0.1), sampling_logprobs=(math.nan, -math.inf)
    )
    store.commit(make_episode(0, turns=(turn,)))
    [[open_turn]] = [episode.turns for episode in Store(store.folder, "run-a").committed_episodes(0)]
    store.close_round(0, 1, {})
    for kept in (open_turn, store.read(0).episode(0).turns[0]):
        assert kept.teacher_logprobs == (-math.inf, float(np.float16(-0.1)))
        assert repr(kept.sampling_logprobs) == "(nan, -inf)"


def test_undecodable_output_of_a_command_does_not_stop_a_round(make_episode, store) -> None:
    turn, unlabelled = make_episode(0).turns[:2]
    store.commit(make_episode(0, turns=(replace(turn, observation="caf\udce9", label_text="\udce9"), unlabelled)))
    store.close_round(0, 1, {})
    turns = store.read(0).episode(0).turns
    assert (turns[0].observation, turns[0].label_text, turns[1].label_text) == ("caf?", "?", None)


def change_files(store: Store, change: Callable[[pa.Table], pa.Table]) -> None:
    """Rewrite what the store holds of round 0, as another version might have written it."""
    for path in store.committed_paths(0):
        path.write_bytes(table_to_bytes(change(read_table(path))))
    if store.is_closed(0):
        pq.write_table(change(pq.read_table(store.parquet_path(0))), store.parquet_path(0))


def of_another_version(table: pa.Table) -> pa.Table:
    fewer = table.drop_columns(["temperature", "top_p", "reward", "teacher_top_ids", "error", "episode_wall_time_s"])
    return fewer.append_column("mood", pa.array(["calm"] * len(table)))


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_missing_column_has_its_default_and_an_unknown_one_is_ignored(store, make_episode, is_closed) -> None:
    full = make_episode(0, error="gone", wall_time_s=2.0)
    full = replace(full, turns=[replace(turn, temperature=0.5, top_p=0.9, reward=1.0) for turn in full.turns])
    store.commit(full, make_episode(1, num_turns=0))
    if is_closed:
        store.close_round(0, 2, {})
    change_files(store, of_another_version)
    reopened = Store(store.folder, "run-a")
    plain = [make_episode(0), make_episode(1, num_turns=0)]
    assert (reopened.read(0).episodes([0, 1]) if is_closed else reopened.committed_episodes(0)) == plain
    reopened.close_round(0, 2, {})
    assert reopened.read(0).episodes([0, 1]) == plain


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("reward", lambda column: column.cast(pa.float32()), "holds reward as float, and .* reads double"),
        ("response_ids", lambda column: column.cast(pa.list_(pa.int64())), "holds response_ids as list<.*int64"),
        ("task_id", None, "has no column task_id"),
    ],
)
def test_a_column_of_another_type_is_refused(store, make_episode, is_closed, column, change, said) -> None:
    store.commit(make_episode(0))
    if is_closed:
        store.close_round(0, 1, {})

    def changed(table: pa.Table) -> pa.Table:
        if change is None:
            return table.drop_columns([column])
        return table.set_column(table.schema.get_field_index(column), column, change(table.column(column)))

    change_files(store, changed)
    with pytest.raises(StoreError, match=said):
        Store(store.folder, "run-a").committed(0)
