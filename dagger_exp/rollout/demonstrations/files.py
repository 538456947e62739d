"""Which rows do files of trajectories hold? JSON, JSON lines (also gzipped) and Parquet."""

from __future__ import annotations

import glob
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dagger_exp.errors import ConfigError

BATCH_ROWS = 64
"""Rows of a Parquet file that are decoded at once."""


def found_files(patterns: Sequence[str]) -> list[Path]:
    """Return the files that these paths and globs name, each once, in a fixed order.

    Raises:
        ConfigError: one of them names no file.
    """
    found: set[Path] = set()
    for pattern in patterns:
        names = [pattern] if Path(pattern).exists() else glob.glob(pattern, recursive=True)  # noqa: PTH207 - absolute ones
        files = {Path(name) for name in names if Path(name).is_file()}
        if not files:
            folder = Path(pattern).is_dir()
            mend = f"it is a folder: give its files, as in '{pattern}/**/*.traj'" if folder else "there is no such file"
            raise ConfigError(f"demonstrations.files names {pattern}, but {mend}.")
        found |= files
    return sorted(found)


def rows(path: Path) -> Iterator[Any]:
    """Yield the rows of a file; None for a line, or for a whole file, that is damaged.

    Raises:
        ConfigError: the file cannot be opened.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet_rows(path)
        elif ".jsonl" in path.suffixes:
            lines = _text(path).split("\n")  # and nowhere else: JSON may hold what Unicode takes for the end of a line
            yield from (_parsed(line) for line in lines if line.strip())
        else:
            whole = _parsed(_text(path))
            yield from whole if isinstance(whole, list) else [whole]
    except OSError as error:
        raise ConfigError(f"{path} of demonstrations.files cannot be read ({error}); leave it out.") from error
    except (pa.ArrowException, EOFError, zlib.error):
        yield None


def _parquet_rows(path: Path) -> Iterator[Any]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            yield from batch.to_pylist()


def _text(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig", errors="replace")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
