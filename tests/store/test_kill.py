from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dagger_exp.errors import StoreError
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
    assert len(whole) == 6
    left = [{path.name for path in folder.glob("000/*")} for folder in attempts]
    assert {"episodes"} in left
    assert {"episodes", "episodes.parquet"} in left, "compacted, not closed"
    assert {"episodes", "episodes.parquet", "manifest.json"} in left, "closed, not cleared"
    for folder in attempts[:-1]:
        store = Store(folder, "run")
        store.claim()
        assert not list(folder.glob("*/**/*.tmp"))
        for round_index in store.rounds():
            store.verify(round_index)
            assert not store.episodes_folder(round_index).exists()
        write(folder)
        assert contents(folder) == whole, f"killed before operation {folder.name}"


def test_half_written_files_are_ignored_and_removed(store, folder, make_episode) -> None:
    store.commit(make_episode(0))
    (store.episodes_folder(0) / "000001.arrows.12ab.tmp").write_text('{"run_id": "run-a", "turn')
    (folder / "000" / "episodes.parquet.12ab.tmp").write_bytes(b"PAR1")
    assert list(store.committed(0)) == [0]
    again = Store(folder, "run-a")
    assert list(again.committed(0)) == [0]
    again.claim()
    assert not list(folder.rglob("*.tmp"))


def test_a_parquet_file_without_its_manifest_is_written_again(store, make_episode) -> None:
    store.commit(make_episode(0))
    store.parquet_path(0).write_bytes(b"of an earlier attempt")
    assert (store.rounds(), store.is_closed(0)) == ([], False)
    store.close_round(0, 1, {})
    assert store.read(0).episode(0) == make_episode(0)


def test_a_second_writer_is_refused_and_takes_nothing_from_the_first_until_that_is_killed(store, make_episode) -> None:
    holding = "import sys; store = Store(Path(sys.argv[1]), 'run-a'); store.claim(); print(flush=True); input()"
    script = f"from pathlib import Path; from dagger_exp.store.store import Store; {holding}"
    command = [sys.executable, "-c", script, str(store.folder)]
    store.commit(make_episode(0))
    half_written = store.episodes_folder(0) / "000001.arrows.12ab.tmp"
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        first.stdout.readline()
        half_written.write_text("{")
        with pytest.raises(StoreError, match="being written by another process"):
            store.claim()
        assert half_written.exists()
        first.kill()
    store.claim()
    assert not half_written.exists()
    store.release()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == b"\n", "its turn"
        second.kill()
