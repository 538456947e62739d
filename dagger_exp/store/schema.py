"""One row per turn: the columns of the record, and the way from episodes to a table and back.

The columns are the fields of `Episode` and `Turn` under their own names, but for the episode's wall time,
which is `episode_wall_time_s`. An episode that ended before its first turn is one row whose turn columns are
all null, as in an outer join, so counting the non-null `turn_index` counts turns.

Reading is additive: a column that a file lacks holds the default of its field, and an unknown one is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dagger_exp.errors import StoreError
from dagger_exp.types import SCHEMA_VERSION, Actor, Episode, StopReason, Turn

SCHEMA = pa.schema(
    {
        "run_id": pa.string(),
        "schema_version": pa.int32(),
        "round_index": pa.int32(),
        "episode_index": pa.int32(),
        "task_id": pa.string(),
        "stop_reason": pa.string(),
        "teacher_id": pa.string(),
        "engine": pa.string(),
        "chat_template_hash": pa.string(),
        "error": pa.string(),
        "episode_wall_time_s": pa.float64(),
        "turn_index": pa.int32(),
        "actor": pa.string(),
        "observation": pa.string(),
        "context_ids": pa.list_(pa.int32()),
        "starts_branch": pa.bool_(),
        "response_text": pa.string(),
        "response_ids": pa.list_(pa.int32()),
        "sampling_logprobs": pa.list_(pa.float32()),
        "label_text": pa.string(),
        "label_ids": pa.list_(pa.int32()),
        "label_error": pa.string(),
        "teacher_logprobs": pa.list_(pa.float16()),
        "teacher_top_ids": pa.list_(pa.int32()),
        "teacher_top_logprobs": pa.list_(pa.float16()),
        "has_label": pa.bool_(),  # derived from label_ids: counting labels must not decode their tokens
        "beta": pa.float64(),
        "coin": pa.float64(),
        "kappa": pa.int32(),
        "valid": pa.bool_(),
        "action_error": pa.string(),
        "reward": pa.float64(),
        "finish_reason": pa.string(),
        "policy_version": pa.int32(),
        "temperature": pa.float64(),
        "top_p": pa.float64(),
        "num_cut_chars": pa.int32(),
        "num_teacher_prompt_tokens": pa.int32(),
        "num_teacher_response_tokens": pa.int32(),
        "wall_time_s": pa.float64(),
    }
)
"""The Parquet schema: plain types only, so that `datasets.load_dataset("parquet", ...)` reads it."""

TIME_COLUMNS = frozenset({"wall_time_s", "episode_wall_time_s"})
"""The columns in which a second collection of the same episode may differ."""

_EPISODE_COLUMNS = {
    {"wall_time_s": "episode_wall_time_s"}.get(field.name, field.name): field.name
    for field in fields(Episode)
    if field.name != "turns"
}
_TURN_COLUMNS = [field.name for field in fields(Turn)]
_DEFAULTS = {field.name: field.default for record in (Episode, Turn) for field in fields(record)}
_DEFAULTS["episode_wall_time_s"] = _DEFAULTS["wall_time_s"]
_of_episode = attrgetter(*_EPISODE_COLUMNS.values())
_of_turn = attrgetter(*_TURN_COLUMNS)
_NO_TURN = (None,) * len(_TURN_COLUMNS)
_HALVES = pa.list_(pa.float16())
_ENUMS = {"actor": Actor, "stop_reason": StopReason}

RECORD_COLUMNS = [*_EPISODE_COLUMNS, *_TURN_COLUMNS]
"""The columns that an `Episode` is made of; the others are derived or the same in the whole store."""


def to_table(run_id: str, episodes: Sequence[Episode]) -> pa.Table:
    """Return one row per turn, and one without a turn for an episode that has none; there is at least one episode.

    Log-probs are rounded to what their columns hold, and what UTF-8 cannot hold in a text becomes "?".
    """
    rows = [
        (*_of_episode(episode), *(_of_turn(turn) if turn else _NO_TURN))
        for episode in episodes
        for turn in episode.turns or (None,)
    ]
    columns: dict[str, Sequence[Any]] = dict(zip(RECORD_COLUMNS, zip(*rows, strict=True), strict=True))
    columns["run_id"], columns["schema_version"] = [run_id] * len(rows), [SCHEMA_VERSION] * len(rows)
    columns["has_label"] = [
        None if turn_index is None else label_ids is not None
        for turn_index, label_ids in zip(columns["turn_index"], columns["label_ids"], strict=True)
    ]
    return pa.table([_array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def conformed(table: pa.Table, path: Path, names: Sequence[str] = SCHEMA.names) -> pa.Table:
    """Return these columns of what was read from a file, as this version writes them.

    Raises:
        StoreError: a column has another type, or is missing and its field has no default.
    """
    return pa.table([_conformed(table, SCHEMA.field(name), path) for name in names], names=list(names))


def _conformed(table: pa.Table, field: pa.Field, path: Path) -> pa.ChunkedArray | pa.Array:
    if field.name in table.column_names:
        column = table.column(field.name)
        if column.type != field.type:
            raise StoreError(
                f"{path} holds {field.name} as {column.type}, and this version of dagger_exp reads {field.type}: "
                "read it with the version that wrote it."
            )
        return column
    if (default := _DEFAULTS.get(field.name, MISSING)) is MISSING:
        raise StoreError(f"{path} has no column {field.name}: read it with the version of dagger_exp that wrote it.")
    if field.name in _EPISODE_COLUMNS:
        return pa.array([default] * len(table), field.type)
    has_turn = table.column("turn_index").is_valid().to_pylist()
    return pa.array([default if has else None for has in has_turn], field.type)


def to_episodes(table: pa.Table) -> list[Episode]:
    """Return the episodes that these rows, all rows of each of them in order, came from; sequences are tuples."""
    columns = {name: _values(name, table.column(name)) for name in RECORD_COLUMNS}
    turns = [
        None if values[0] is None else Turn(*values)
        for values in zip(*(columns[name] for name in _TURN_COLUMNS), strict=True)
    ]
    episodes = []
    for _, group in groupby(range(len(turns)), columns["episode_index"].__getitem__):
        places = list(group)
        shared = {name: columns[column][places[0]] for column, name in _EPISODE_COLUMNS.items()}
        episodes.append(Episode(**shared, turns=tuple(turn for place in places if (turn := turns[place]) is not None)))
    return episodes


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if kind == _HALVES:  # which Arrow takes from no other numbers of numpy
        values = [None if numbers is None else np.asarray(numbers, np.float16) for numbers in values]
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # the half of a surrogate pair, which an answer in JSON may hold
        plain = [None if text is None else text.encode("utf-8", "replace").decode() for text in values]
        return pa.array(plain, kind)


def _values(name: str, column: pa.ChunkedArray) -> list[Any]:
    values = column.to_pylist()
    if (convert := _ENUMS.get(name, tuple if pa.types.is_list(column.type) else None)) is None:
        return values
    return [None if value is None else convert(value) for value in values]
