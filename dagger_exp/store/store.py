"""What is kept? Episodes and closed rounds, written in an order that survives a kill at any moment."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from dagger_exp.errors import StoreError
from dagger_exp.store.compaction import compact
from dagger_exp.store.files import ASIDE_SUFFIX, write_json, written_aside
from dagger_exp.store.schema import TIME_COLUMNS, to_episodes, to_table
from dagger_exp.store.view import EpisodeSummary, StoreView, by_episode, read_table, sha256, summarize, table_to_bytes
from dagger_exp.types import SCHEMA_VERSION, Episode

LOCK = "writer.lock"
"""What a writer holds locked while it lives; the file is empty, and stays."""


class Held(NamedTuple):
    """An episode of an open round, and its rows."""

    episode: Episode
    table: pa.Table


class Store(StoreView):
    """The store of a run that writes it: episodes come whole or not at all, closed rounds never change.

    One process writes: the one that has claimed it. Others of the same run (the ranks of a job) may hold one, too.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        """Open the run's store, or create it.

        Args:
            folder: the run's `rounds/` folder.
            run_id: the run that collects into it.

        Raises:
            StoreError: the store is of another run or schema version, is damaged, or cannot be written.
        """
        identity = folder / "store.json"
        if not os.access(identity, os.F_OK):
            write_json(identity, {"schema_version": SCHEMA_VERSION, "run_id": run_id})
        super().__init__(folder)
        if self.run_id != run_id:
            raise StoreError(
                f"{folder} is the store of run {self.run_id}, not of {run_id}: "
                "resume that run with resume=FOLDER, or set another folder under `paths.`."
            )
        self._open: dict[int, dict[int, Held]] = {}
        self._lock: int | None = None

    @staticmethod
    def open(folder: Path) -> StoreView:
        """Open a store of which the run is not known, for reports and reuse; see `StoreView`."""
        return StoreView(folder)

    def claim(self) -> None:
        """Become the one process that writes here, until its end; remove what a writer that was killed has left.

        Raises:
            StoreError: another process writes here.
        """
        if self._lock is None:
            lock = os.open(self.folder / LOCK, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    os.close(lock)
                    raise StoreError(f"{self.folder} is being written by another process: wait for its end.") from None
                logging.getLogger(__name__).warning("%s has no locks: %s", self.folder, error)
            self._lock = lock
            self._sweep()

    def release(self) -> None:
        """Let others write here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def commit(self, *episodes: Episode) -> list[EpisodeSummary]:
        """Make episodes of an open round durable, whole or not at all, at the price of one.

        An episode that is there already stays as it is, if the new one differs in wall times at most.

        Raises:
            StoreError: the round is closed, it has a different episode of an index, or the disk is full or
                cannot be written.
        """
        [round_index] = {episode.round_index for episode in episodes}
        if self.is_closed(round_index):
            raise StoreError(
                f"round {round_index} of {self.folder} is closed and takes no episode: "
                "collect into a later round, or start a new run."
            )
        there = self._held(round_index)
        new = {episode.episode_index: episode for episode in episodes if episode.episode_index not in there}
        for episode in episodes:
            if episode.episode_index in there:
                self._check_equal(episode)
        if new:
            table = to_table(self.run_id, list(new.values()))
            self._write(round_index, table)
            there.update({index: Held(new[index], rows) for index, rows in by_episode(table).items()})
        return [summarize(episode) for episode in episodes]

    def discard(self, round_index: int, episode_indices: Collection[int]) -> None:
        """Take episodes out of an open round, for them to be played again."""
        for path in self.committed_paths(round_index):
            tables = by_episode(read_table(path))
            kept = [table for index, table in tables.items() if index not in episode_indices]
            if len(kept) < len(tables) and (not kept or self._write(round_index, pa.concat_tables(kept)) != path):
                path.unlink()
        for index in episode_indices:
            self._held(round_index).pop(index, None)

    def episodes(self, round_index: int, num_episodes: int) -> list[Episode]:
        """Return episodes 0 to num_episodes - 1 of an open round: as they were committed, or as they were found.

        Raises:
            StoreError: an episode is missing or damaged.
        """
        return [held.episode for held in self._first(round_index, num_episodes)]

    def close_round(
        self,
        round_index: int,
        num_episodes: int,
        counts: Mapping[str, Any],
        origin: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Compact the first episodes into one Parquet file; return the manifest that closes the round.

        The manifest has `schema_version run_id round_index num_episodes num_turns num_labels num_dropped
        stop_reasons sha256 counts`. Its own numbers are of all that the file holds, failures of infrastructure
        included, which most of `counts` leave out (see `rollout_metrics`); `num_dropped` are committed episodes of
        a higher index, which the round does not keep. A round that is closed already stays as it is.

        Args:
            round_index: the round.
            num_episodes: that it keeps.
            counts: JSON values that the manifest shall hold as well.
            origin: where the episodes came from, for the manifest; None where they were played.

        Raises:
            StoreError: an episode is missing or damaged, or the disk is full or cannot be written.
        """
        if not self.is_closed(round_index):
            kept = self._first(round_index, num_episodes)
            compact(self.parquet_path(round_index), (held.table for held in kept))
            manifest = self._describe(round_index, [held.episode for held in kept], counts)
            manifest |= {} if origin is None else {"origin": dict(origin)}
            write_json(self.manifest_path(round_index), manifest)
            shutil.rmtree(self.episodes_folder(round_index), ignore_errors=True)
            del self._open[round_index]
        return self.manifest(round_index)

    def _held(self, round_index: int) -> dict[int, Held]:
        """Return an open round's episodes; the disk is asked once, since nobody else writes there."""
        if round_index not in self._open:
            tables = self.committed_tables(round_index)
            self._open[round_index] = {index: Held(to_episodes(table)[0], table) for index, table in tables.items()}
        return self._open[round_index]

    def _first(self, round_index: int, num_episodes: int) -> list[Held]:
        """Return episodes 0 to num_episodes - 1."""
        held = self._held(round_index)
        self._check_complete(round_index, num_episodes, held)
        return [held[index] for index in range(num_episodes)]

    def _write(self, round_index: int, table: pa.Table) -> Path:
        """Write episodes into one file and return it."""
        path = self.episodes_folder(round_index) / f"{table.column('episode_index')[0].as_py():06d}.arrows"
        with written_aside(path) as file:
            file.write(table_to_bytes(table))
        return path

    def _check_equal(self, episode: Episode) -> None:
        """Refuse an episode that is there already, but differs."""
        round_index, index = episode.round_index, episode.episode_index
        if _without_times(to_table(self.run_id, [episode])) != _without_times(self._held(round_index)[index].table):
            raise StoreError(
                f"{self._file_of(round_index, index)} holds a different episode {index}: delete that file to collect "
                "what it holds again, or find the choice that does not follow from the seed."
            )

    def _file_of(self, round_index: int, index: int) -> Path:
        files = self.committed_paths(round_index)
        return next(path for path in files if index in by_episode(read_table(path)))

    def _check_complete(self, round_index: int, num_episodes: int, found: Collection[int]) -> None:
        missing = [index for index in range(num_episodes) if index not in found]
        if missing:
            raise StoreError(
                f"round {round_index} of {self.folder} lacks {len(missing)} of {num_episodes} episodes "
                f"(the first is {missing[0]}) and cannot be closed: resume the run to collect them."
            )

    def _describe(self, round_index: int, kept: Sequence[Episode], counts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "run_id": self.run_id,
            "round_index": round_index,
            "num_episodes": len(kept),
            "num_turns": sum(len(episode.turns) for episode in kept),
            "num_labels": sum(episode.num_labels for episode in kept),
            "num_dropped": len(self._held(round_index)) - len(kept),
            "stop_reasons": dict(sorted(Counter(str(episode.stop_reason) for episode in kept).items())),
            "sha256": sha256(self.parquet_path(round_index)),
            "counts": dict(counts),
        }

    def _sweep(self) -> None:
        for round_folder in self.folder.glob("[0-9]*"):
            if (round_folder / "manifest.json").exists():
                shutil.rmtree(round_folder / "episodes", ignore_errors=True)
            for aside in round_folder.rglob(f"*{ASIDE_SUFFIX}"):
                aside.unlink(missing_ok=True)


def _without_times(table: pa.Table) -> str:
    # As text, because a NaN does not equal itself.
    return str(table.drop_columns(list(TIME_COLUMNS)).to_pylist())
