from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dagger_exp.store.store import Store

SCRIPT = Path(__file__).with_name("killed_writer.py")


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files, but for what a kill leaves while the store is created (see `Store.__init__`)."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.match("store.json.*.tmp")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Give the folders of all killed writers, and last the one of the writer that lived."""
    folder = tmp_path_factory.mktemp("attempts")
    subprocess.run([sys.executable, SCRIPT, folder], check=True)
    return sorted(folder.iterdir(), key=lambda path: int(path.name))


@pytest.fixture
def write() -> Callable[[Path], None]:
    """Give the function that was killed, to be run once more."""
    return runpy.run_path(str(SCRIPT))["write"]


def test_a_writer_killed_anywhere_loses_nothing_and_writes_nothing_twice(attempts, write) -> None:
    whole = contents(attempts[-1])
    assert len(whole) == 5
    left = [{path.name for path in folder.glob("000/*")} for folder in attempts]
    assert {"episodes"} in left
    assert {"episodes", "episodes.parquet"} in left, "compacted, not closed"
    assert {"episodes", "episodes.parquet", "manifest.json"} in left, "closed, not cleared"
    for folder in attempts[:-1]:
        store = Store(folder, "run")
        assert not list(folder.glob("*/**/*.tmp"))
        for round_index in store.rounds():
            store.verify(round_index)
            assert not store.episodes_folder(round_index).exists()
        write(folder)
        assert contents(folder) == whole, f"killed before operation {folder.name}"


def test_half_written_files_are_ignored_and_removed(store, folder, make_episode) -> None:
    store.commit(make_episode(0))
    (store.episodes_folder(0) / "000001.jsonl.12ab.tmp").write_text('{"run_id": "run-a", "turn')
    (folder / "000" / "episodes.parquet.12ab.tmp").write_bytes(b"PAR1")
    assert list(store.committed(0)) == [0]
    assert list(Store(folder, "run-a").committed(0)) == [0]
    assert not list(folder.rglob("*.tmp"))


def test_a_parquet_file_without_its_manifest_is_written_again(store, make_episode) -> None:
    store.commit(make_episode(0))
    store.parquet_path(0).write_bytes(b"of an earlier attempt")
    assert (store.rounds(), store.is_closed(0)) == ([], False)
    store.close_round(0, store.rows(0, 1), {})
    assert store.read(0).episode(0) == make_episode(0)
