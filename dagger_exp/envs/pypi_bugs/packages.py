"""Where does the code come from? Source archives of the package index, of chosen versions and content, kept in a cache.

Nothing of a package is installed: its sources and tests are files that are written into sandboxes. What the suites need
(pytest) is installed into a folder of its own, which sandboxes can read.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath

from dagger_exp.errors import EnvError

logger = logging.getLogger(__name__)

LIST = files("dagger_exp.envs.pypi_bugs").joinpath("packages.toml")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--retries", "1")
PIP_TIMEOUT_S = 300.0
FULL = "No space left on device"


class UnusableError(EnvError):
    """A package cannot be had, or its suite cannot judge; the text says why, and the world goes on without it."""


@dataclass(frozen=True, slots=True)
class Package:
    """A line of the list: a version of a project, and which of its files matter."""

    name: str
    version: str
    license: str
    split: str
    sources: Sequence[str]
    tests: Sequence[str]
    sha256: str
    left_out: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Project:
    """An unpacked package; all paths are those below `/work` in a sandbox.

    Args:
        package: that it is of.
        files: all of them, tests included.
        modules: the Python files of its sources, which may be repaired.
        tests: the Python files of its suite.
    """

    package: Package
    files: Mapping[str, bytes]
    modules: tuple[str, ...]
    tests: tuple[str, ...]

    @property
    def folders(self) -> tuple[str, ...]:
        """Return the names of its sources in `/work`."""
        return tuple(PurePosixPath(source).name for source in self.package.sources)


def listed() -> Mapping[str, Package]:
    """Return the packages of the list by name."""
    rows = tomllib.loads(LIST.read_text())
    return {name: Package(name=name, **row) for name, row in rows.items() if isinstance(row, dict)}


class PackageCache:
    """Unpacked packages, and what their suites need, below one folder; several runs may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def site(self) -> Path:
        """Return the folder with pytest; installs it at first. Raises `UnusableError`."""
        requirements = tomllib.loads(LIST.read_text())["requirements"]
        place = self.folder / "-".join(["site", *(word.replace("==", "-") for word in requirements)])
        if not place.exists():
            logger.info("installing %s", ", ".join(requirements))
            with _aside(self.folder) as aside:
                options = ["--only-binary", ":all:", "--target", str(aside / "site")]
                _pip("install", *options, *requirements)
                _move(aside / "site", place)
        return place

    def project(self, package: Package) -> Project:
        """Return the files of a package; fetches it at first. Raises `UnusableError`."""
        folder = self.folder / f"{package.name}-{package.version}-{package.sha256[:8]}"
        if not folder.exists():
            logger.info("fetching %s %s", package.name, package.version)
            with _aside(self.folder) as aside:
                _unpack(_download(package, aside), aside / "unpacked")
                _move(next((aside / "unpacked").iterdir()), folder)
        return _read(package, folder)


def _download(package: Package, folder: Path) -> Path:
    """Return the source archive; pip compares its content with the list before it looks into it."""
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    options = ["--no-deps", "--no-binary", package.name, "--require-hashes", "--dest", str(folder)]
    _pip("download", *options, "--requirement", str(wanted))
    return next(folder.glob("*.tar.gz"))


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive, but nothing that would leave the folder or be more than a file."""
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise UnusableError(f"{archive.name} cannot be unpacked ({error})") from error


def _pip(*arguments: str) -> None:
    command = [*PIP, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PIP_TIMEOUT_S)  # noqa: S603 - its words are of the list
    except subprocess.TimeoutExpired as error:
        raise UnusableError(f"pip {arguments[0]} took more than {PIP_TIMEOUT_S:g} s") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        reason = next((line for line in reversed(said) if line.startswith("ERROR: ")), said[-1])
        reason = FULL if FULL in done.stderr else reason  # which pip tells in a traceback of a thousand lines
        raise UnusableError(f"pip {arguments[0]} failed: {reason.removeprefix('ERROR: ').strip().rstrip('.')}")


@contextmanager
def _aside(folder: Path) -> Iterator[Path]:
    """Hold a folder on the same disk, from which whole results are renamed to their place."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as name:
        yield Path(name)


def _move(made: Path, place: Path) -> None:
    """Move a folder to its place; where another run was faster, its own is as good."""
    try:
        os.replace(made, place)
    except OSError:
        if not place.exists():
            raise


def _read(package: Package, folder: Path) -> Project:
    found: dict[str, bytes] = {}
    tests: list[str] = []
    within = [test for test in package.tests for source in package.sources if Path(test).is_relative_to(source)]
    for item in (*package.sources, *(test for test in package.tests if test not in within)):
        root = folder / item
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            inside = path.relative_to(folder)
            if not path.is_file() or "__pycache__" in path.parts or inside.as_posix() in package.left_out:
                continue
            place = path.relative_to(root.parent).as_posix()
            if any(inside.is_relative_to(test) for test in package.tests):
                tests.append(place)
            found[place] = path.read_bytes()
    python = [place for place in found if place.endswith(".py")]
    return Project(
        package,
        found,
        modules=tuple(place for place in python if place not in tests),
        tests=tuple(place for place in python if place in tests),
    )
