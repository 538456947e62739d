"""Is it on the disk, and whole? The few file operations whose order makes a store survive a kill."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from dagger_exp.errors import StoreError

ASIDE_SUFFIX = ".tmp"
VISIBLE_S = 60.0
"""How long what one process has written may take to be seen by the others."""


@contextmanager
def written_aside(path: Path) -> Iterator[BinaryIO]:
    """Open a file that stands at `path`, whole and durable, when the block ends, and never if it fails.

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    # A name of its own, because the ranks of a job may create the same store at the same time.
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}{ASIDE_SUFFIX}")
    try:
        make_folder(path.parent)
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError):
            raise StoreError(
                f"{path} cannot be written ({error.strerror or error}): "
                "free space there, or set another folder under `paths.`."
            ) from error
        raise


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, durably: its name is on the disk before anything in it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable; a rename is not until its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all.

    Raises:
        StoreError: as `written_aside`.
    """
    with written_aside(path) as file:
        file.write((json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path, mend: str) -> dict[str, Any]:
    """Return the one JSON object that a file holds.

    Raises:
        StoreError: the file is missing or damaged; the sentence ends in `mend`.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror}): {mend}.") from error
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}): {mend}.") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} is damaged (it holds no JSON object): {mend}.")
    return value
