"""What does a store hold? Reading one, by any process, also while its run is still writing.

store.json                 whose store this is, and in which schema version
writer.lock                held by the process that writes, empty
000/episodes/000012.arrows an open round: one file for the episodes that were committed together, named after the
                           first of them, one row for each turn; an Arrow stream, and 4 bytes with its checksum
000/episodes.parquet       a closed round, and beside it
000/manifest.json          its description, whose arrival is what closes the round
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from dagger_exp.errors import StoreError
from dagger_exp.store.files import read_json
from dagger_exp.store.reader import RoundFile, RoundReader
from dagger_exp.store.schema import conformed, to_episodes
from dagger_exp.types import SCHEMA_VERSION, Episode, StopReason

CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """What a collector must know of an episode that the store has already."""

    num_turns: int
    num_labels: int
    stop_reason: StopReason
    task_id: str
    num_label_errors: int = 0


class StoreView:
    """A store for reading; changes nothing on disk.

    Attributes:
        folder: the run's `rounds/` folder.
        run_id: the run that writes it.
    """

    def __init__(self, folder: Path) -> None:
        """Open the store in this folder.

        Raises:
            StoreError: there is no store, its `store.json` is unreadable, or it has another schema version.
        """
        identity = folder / "store.json"
        found = read_json(identity, "give the rounds/ folder of a run, or restore the file from a copy")
        _check_version(identity, found)
        self.folder = folder
        self.run_id = str(found.get("run_id"))

    def committed(self, round_index: int) -> dict[int, EpisodeSummary]:
        """Return what the disk holds of a round, open or closed, by episode index in ascending order.

        Raises:
            StoreError: a file is damaged.
        """
        if self.is_closed(round_index):
            reader = self.read(round_index)
            numbers = (reader.num_turns.tolist(), reader.num_labels.tolist())
            columns = zip(*numbers, reader.stop_reasons, reader.task_ids, strict=True)
            return {index: EpisodeSummary(*values) for index, values in enumerate(columns)}
        return {episode.episode_index: summarize(episode) for episode in self.committed_episodes(round_index)}

    def is_closed(self, round_index: int) -> bool:
        """Return whether the round has its manifest, so that nothing in it will change."""
        return self.manifest_path(round_index).is_file()

    def rounds(self) -> list[int]:
        """Return the indices of the closed rounds, ascending."""
        return sorted(int(path.parent.name) for path in self.folder.glob("[0-9]*/manifest.json"))

    def next_round(self) -> int:
        """Return the index of the first round that is not closed."""
        closed = set(self.rounds())
        return next(index for index in count() if index not in closed)

    def manifest(self, round_index: int) -> dict[str, Any]:
        """Return the manifest of a closed round, see `Store.close_round`.

        Raises:
            StoreError: the round is not closed, its manifest is damaged, or it has another schema version.
        """
        path = self.manifest_path(round_index)
        manifest = read_json(path, "resume the run to close the round, or restore the file from a copy")
        _check_version(path, manifest)
        return manifest

    def read(self, *round_indices: int) -> RoundReader:
        """Return a reader over these closed rounds, in this order: `read(3)`, or `read(*store.rounds())`.

        Raises:
            StoreError: a round is not closed, or its file is damaged or not the one of its manifest.
        """
        return RoundReader([self._open_file(round_index) for round_index in round_indices])

    def verify(self, round_index: int) -> None:
        """Compare the bytes of a closed round with the hash in its manifest; reads the whole file.

        Raises:
            StoreError: the round is not closed, or its file is missing or not the one of its manifest.
        """
        path = self.parquet_path(round_index)
        expected = self.manifest(round_index)["sha256"]
        if not path.is_file() or sha256(path) != expected:
            raise _not_as_described(path)

    def episodes_folder(self, round_index: int) -> Path:
        """Return where the episodes of an open round are."""
        return self.folder / f"{round_index:03d}" / "episodes"

    def parquet_path(self, round_index: int) -> Path:
        """Return where a closed round has its episodes, one row per turn (see `schema`)."""
        return self.folder / f"{round_index:03d}" / "episodes.parquet"

    def manifest_path(self, round_index: int) -> Path:
        """Return where a closed round has its manifest."""
        return self.folder / f"{round_index:03d}" / "manifest.json"

    def committed_episodes(self, round_index: int) -> list[Episode]:
        """Return the episodes of an open round in ascending order.

        Raises:
            StoreError: a file is damaged.
        """
        return [to_episodes(table)[0] for table in self.committed_tables(round_index).values()]

    def committed_tables(self, round_index: int) -> dict[int, pa.Table]:
        """Return the rows of each episode of an open round, by episode index in ascending order.

        Raises:
            StoreError: a file is damaged.
        """
        paths = self.committed_paths(round_index)
        found = {index: table for path in paths for index, table in by_episode(read_table(path)).items()}
        return {index: found[index] for index in sorted(found)}

    def committed_paths(self, round_index: int) -> list[Path]:
        """Return the files of an open round's episodes."""
        return sorted(self.episodes_folder(round_index).glob("*.arrows"))

    def _open_file(self, round_index: int) -> RoundFile:
        manifest = self.manifest(round_index)
        file = RoundFile(self.parquet_path(round_index))
        if (len(file), int(file.num_turns.sum())) != (manifest["num_episodes"], manifest["num_turns"]):
            raise _not_as_described(file.path)
        return file


def read_table(path: Path) -> pa.Table:
    """Return the rows of the episodes that were committed together, in the columns of this version.

    Raises:
        StoreError: the file is missing or damaged, or a column has another type than this version reads.
    """
    mend = "delete it and resume the run to collect what it held again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): {mend}.") from error
    stream, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if checksum != _checksum(stream):
        raise StoreError(f"{path} is damaged (it differs from its checksum): {mend}.")
    return conformed(pa.ipc.open_stream(stream).read_all(), path)


def table_to_bytes(table: pa.Table) -> bytes:
    """Return what `read_table` reads; a reader of Arrow streams ignores the checksum at the end, which Arrow lacks."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = sink.getvalue()
    return stream + _checksum(stream)


def _checksum(stream: bytes) -> bytes:
    return zlib.crc32(stream).to_bytes(CHECKSUM_BYTES, "big")


def by_episode(table: pa.Table) -> dict[int, pa.Table]:
    """Return the rows of each episode, which stand together, by episode index."""
    tables, begin = {}, 0
    for index, rows in groupby(table.column("episode_index").to_pylist()):
        tables[index] = table.slice(begin, num_rows := len(list(rows)))
        begin += num_rows
    return tables


def summarize(episode: Episode) -> EpisodeSummary:
    """Return what a collector must know of an episode."""
    return EpisodeSummary(
        num_turns=len(episode.turns),
        num_labels=episode.num_labels,
        stop_reason=episode.stop_reason,
        task_id=episode.task_id,
        num_label_errors=episode.num_label_errors,
    )


def sha256(path: Path) -> str:
    """Return the hash of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_version(path: Path, found: Mapping[str, Any]) -> None:
    version = found.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version} and this code reads {SCHEMA_VERSION}: "
            "use the version of dagger_exp that wrote it, or start a new run."
        )


def _not_as_described(path: Path) -> StoreError:
    return StoreError(
        f"{path} is not the file that its manifest describes: restore both from a copy, or delete the folder "
        "and those of the later rounds and resume the run."
    )
