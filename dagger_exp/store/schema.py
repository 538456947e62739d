"""One row per turn: the columns of the record, and the way from an episode to rows and back.

The columns are the fields of `Episode` and `Turn` under their own names, but for the episode's wall time,
which is `episode_wall_time_s`. An episode that ended before its first turn is one row whose turn columns are
all null, as in an outer join, so counting the non-null `turn_index` counts turns.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from dagger_exp.types import SCHEMA_VERSION, Actor, Episode, StopReason, Turn

Row = dict[str, Any]

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
_NO_TURN: Row = dict.fromkeys([*_TURN_COLUMNS, "has_label"])

RECORD_COLUMNS = [*_EPISODE_COLUMNS, *_TURN_COLUMNS]
"""The columns that an `Episode` is made of; the others are derived or the same in the whole store."""


def episode_to_rows(run_id: str, episode: Episode) -> list[Row]:
    """Return one row of plain JSON values per turn, or one row without a turn.

    Log-probs are rounded to float32 and what UTF-8 cannot hold in a text becomes "?", here and not later, so
    that a row is the same before and after compaction.
    """
    shared = {column: getattr(episode, name) for column, name in _EPISODE_COLUMNS.items()}
    shared = _plain(shared | {"run_id": run_id, "schema_version": SCHEMA_VERSION})
    return [shared | _plain(_turn_columns(turn)) for turn in episode.turns] or [shared | _NO_TURN]


def rows_to_episode(rows: Sequence[Mapping[str, Any]]) -> Episode:
    """Return the episode that these rows, all of its rows in order, came from; its sequences are tuples."""
    shared = {name: rows[0][column] for column, name in _EPISODE_COLUMNS.items()}
    shared["stop_reason"] = StopReason(shared["stop_reason"])
    return Episode(**shared, turns=tuple(_turn(row) for row in rows if row["turn_index"] is not None))


def _turn_columns(turn: Turn) -> Row:
    columns = {name: getattr(turn, name) for name in _TURN_COLUMNS}
    return columns | {"has_label": turn.label_ids is not None}


def _turn(row: Mapping[str, Any]) -> Turn:
    values = {name: row[name] for name in _TURN_COLUMNS}
    for name, value in values.items():
        if isinstance(value, list):
            values[name] = tuple(value)
    values["actor"] = Actor(values["actor"])
    return Turn(**values)


def _plain(row: Row) -> Row:
    return {
        name: convert(value) if value is not None and (convert := _COLUMN_CONVERTERS.get(name)) else value
        for name, value in row.items()
    }


def _plain_text(text: str) -> str:
    # The output of a command may hold undecodable bytes as lone surrogates, which Parquet refuses. A member of an enum
    # becomes its value.
    return text.encode("utf-8", "replace").decode("utf-8")


_CONVERTERS: dict[pa.DataType, Callable[[Any], Any]] = {
    pa.string(): _plain_text,
    pa.list_(pa.int32()): lambda ids: array("i", ids).tolist(),
    pa.list_(pa.float16()): lambda values: np.asarray(values, np.float16).tolist(),
    pa.list_(pa.float32()): lambda values: array("f", values).tolist(),
}
_COLUMN_CONVERTERS = {field.name: _CONVERTERS[field.type] for field in SCHEMA if field.type in _CONVERTERS}
