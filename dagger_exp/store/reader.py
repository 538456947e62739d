"""What did closed rounds record? Memory-mapped random access to episodes, with a light index of them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dagger_exp.errors import StoreError
from dagger_exp.store.schema import RECORD_COLUMNS, conformed, to_episodes
from dagger_exp.types import Episode, StopReason

CACHED_ROW_GROUPS = 4
"""Decoded row groups that a reader keeps, so that neighbouring episodes cost one decoding."""


class RoundFile:
    """The Parquet file of one closed round, by episode index.

    Attributes:
        path: the file.
        num_turns, num_labels, stop_reasons: as in `RoundReader`.
    """

    def __init__(self, path: Path) -> None:
        """Map the file and read its index.

        Raises:
            StoreError: the file is missing or damaged, or a column has another type than this version reads.
        """
        self.path = path
        with self._naming_damage():
            self._file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
        conformed(self._file.schema_arrow.empty_table(), path)
        metadata = self._file.metadata
        group_rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._group_starts = np.cumsum([0, *group_rows])

        index = self._columns("episode_index", "turn_index", "has_label", "stop_reason")
        first_rows = np.flatnonzero(np.diff(index["episode_index"], prepend=-1))
        self._bounds = np.append(first_rows, metadata.num_rows)
        self.num_turns = self._count_per_episode(index["turn_index"].is_valid())
        self.num_labels = self._count_per_episode(index["has_label"].fill_null(False))
        self.stop_reasons = _objects(map(StopReason, self._first_per_episode(index["stop_reason"])))

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @cached_property
    def task_ids(self) -> np.ndarray:
        """The task of each episode, str [episodes]; read on first use."""
        return _objects(self._first_per_episode(self._columns("task_id")["task_id"]))

    def locate(self, episode_index: int) -> tuple[int, slice]:
        """Return the row group that holds an episode, and the episode's place in it."""
        start, end = self._bounds[episode_index : episode_index + 2].tolist()
        group = int(np.searchsorted(self._group_starts, start, side="right")) - 1
        group_start = int(self._group_starts[group])
        return group, slice(start - group_start, end - group_start)

    def row_group(self, group: int) -> pa.Table:
        """Return the decoded rows of a row group.

        Raises:
            StoreError: the file is damaged there.
        """
        with self._naming_damage():
            table = self._file.read_row_group(group, columns=RECORD_COLUMNS, use_threads=False)
        return conformed(table, self.path, RECORD_COLUMNS)

    def _columns(self, *names: str) -> dict[str, pa.ChunkedArray]:
        with self._naming_damage():
            table = self._file.read(columns=list(names), use_threads=False)
        return {name: table.column(name) for name in names}

    def _first_per_episode(self, column: pa.ChunkedArray) -> list[Any]:
        return column.take(self._bounds[:-1]).to_pylist()

    def _count_per_episode(self, flags: pa.ChunkedArray) -> np.ndarray:
        counted = np.cumsum(np.append(0, flags.to_numpy()))
        return np.diff(counted[self._bounds])

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"{self.path} is missing or damaged ({error}): restore it from a copy, or delete its folder "
                "and those of the later rounds and resume the run."
            ) from error


class RoundReader:
    """The episodes of one or more closed rounds as one sequence, round after round. Not thread-safe.

    Attributes:
        num_turns: turns of each episode, int64 [episodes]; 0 where it ended before its first turn.
        num_labels: turns of each episode that the teacher labelled, int64 [episodes].
        stop_reasons: why each episode ended, `StopReason` [episodes].
    """

    def __init__(self, files: Sequence[RoundFile]) -> None:
        self._files = files
        self._starts = np.cumsum([0, *(len(file) for file in files)])
        self._row_group = lru_cache(CACHED_ROW_GROUPS)(lambda place, group: files[place].row_group(group))
        self.num_turns = _joined((file.num_turns for file in files), np.int64)
        self.num_labels = _joined((file.num_labels for file in files), np.int64)
        self.stop_reasons = _joined((file.stop_reasons for file in files), np.object_)

    def __len__(self) -> int:
        return len(self.num_turns)

    @property
    def solved(self) -> np.ndarray:
        """Which episodes were solved, bool [episodes]."""
        return self.stop_reasons == StopReason.SOLVED

    @cached_property
    def task_ids(self) -> np.ndarray:
        """The task of each episode, str [episodes]; read on first use."""
        return _joined((file.task_ids for file in self._files), np.object_)

    def episode(self, index: int) -> Episode:
        """Return the episode at this place of the sequence, which in a single round is its episode index.

        Decodes the one row group that holds it.

        Raises:
            IndexError: there is no such episode.
            StoreError: a file is damaged there.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        group, rows = self._files[place].locate(index - int(self._starts[place]))
        [episode] = to_episodes(self._row_group(place, group)[rows])
        return episode

    def all_episodes(self) -> list[Episode]:
        """Return every episode, in order."""
        return self.episodes(range(len(self)))

    def episodes(self, indices: Sequence[int]) -> list[Episode]:
        """Return these episodes in the order asked for, decoding each row group once.

        Raises:
            IndexError, StoreError: as `episode`.
        """
        found = {index: self.episode(index) for index in sorted(set(indices))}
        return [found[index] for index in indices]


def _objects(values: Iterable[Any]) -> np.ndarray:
    return np.array(list(values), dtype=np.object_)


def _joined(arrays: Iterable[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *arrays])
