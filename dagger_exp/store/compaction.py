"""How does a round become one file? Tables of whole episodes in, Parquet out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dagger_exp.store.files import written_aside
from dagger_exp.store.schema import SCHEMA

ROW_GROUP_TURNS = 1200
"""Reading an episode decodes one row group: small enough for random access, large enough to compress well."""
ROW_GROUP_TOKENS = 250_000
"""Ends a row group of long turns earlier, so that neither its decoding nor its memory grows with them."""

_REPEATED = (
    "run_id task_id stop_reason teacher_id engine chat_template_hash error actor action_error finish_reason".split()
)
_WRITING: dict[str, Any] = {
    "compression": "zstd",
    "use_dictionary": _REPEATED,  # for token ids and free text a dictionary is larger and slower (measured)
    "write_statistics": False,  # nothing filters by them, and they are a third of what opening a file reads
    "write_page_checksum": True,
}


def compact(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write these rows, in this order, as one Parquet file that is there whole or not at all.

    Holds one row group in memory at a time; a table never straddles two.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    with written_aside(path) as file, pq.ParquetWriter(file, SCHEMA, **_WRITING) as writer:
        for group in _row_groups(tables):
            writer.write_table(group, row_group_size=len(group))


def _row_groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    group: list[pa.Table] = []
    turns = tokens = 0
    for table in tables:
        group.append(table)
        turns += len(table)
        tokens += _num_tokens(table)
        if turns >= ROW_GROUP_TURNS or tokens >= ROW_GROUP_TOKENS:
            yield pa.concat_tables(group).combine_chunks()
            group, turns, tokens = [], 0, 0
    if group:
        yield pa.concat_tables(group).combine_chunks()


def _num_tokens(table: pa.Table) -> int:
    columns = (table.column(ids) for ids in ("context_ids", "response_ids", "label_ids"))
    return sum(len(chunk.flatten()) for column in columns for chunk in column.chunks)
