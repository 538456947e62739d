"""How does a round become one file? Rows of whole episodes in, Parquet out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dagger_exp.store.files import written_aside
from dagger_exp.store.schema import SCHEMA, Row

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


def compact(path: Path, episodes: Iterable[Sequence[Row]]) -> None:
    """Write the rows of these episodes, in this order, as one Parquet file that is there whole or not at all.

    Holds one row group in memory at a time; an episode never straddles two.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    with written_aside(path) as file, pq.ParquetWriter(file, SCHEMA, **_WRITING) as writer:
        for rows in _row_groups(episodes):
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), row_group_size=len(rows))


def _row_groups(episodes: Iterable[Sequence[Row]]) -> Iterator[list[Row]]:
    rows: list[Row] = []
    tokens = 0
    for episode in episodes:
        rows.extend(episode)
        tokens += sum(_num_tokens(row) for row in episode)
        if len(rows) >= ROW_GROUP_TURNS or tokens >= ROW_GROUP_TOKENS:
            yield rows
            rows, tokens = [], 0
    if rows:
        yield rows


def _num_tokens(row: Row) -> int:
    return sum(len(row[ids] or ()) for ids in ("context_ids", "response_ids", "label_ids"))
