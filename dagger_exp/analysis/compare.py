"""From paths to a comparison, and from a comparison to its files: a table of all rounds, and plots."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path

from dagger_exp.analysis.curves import AXES, METRICS, Point, curve
from dagger_exp.analysis.groups import Comparison, Group
from dagger_exp.analysis.load import Run, load_runs
from dagger_exp.analysis.plots import save_plots
from dagger_exp.errors import StoreError, UserError

TABLE = "compare.csv"
"""The file by which a folder is known to be a comparison."""
INTERVALS = ("success_rate", "loss")
"""The metrics whose interval stands in the table; beta and the share of student turns are chosen, not measured."""


def read_runs(paths: Iterable[str]) -> tuple[list[Run], list[str]]:
    """Return the runs of all paths, each once, and a sentence for each that cannot be read."""
    runs: dict[str, Run] = {}
    complaints: list[str] = []
    offline, others = _told_apart(paths)
    for found, said in [*map(_read, others), *([_read_offline(offline)] if offline else [])]:
        complaints += said
        for run in found:
            runs.setdefault(str(run.folder.resolve()) if run.folder else run.place, run)
    return list(runs.values()), complaints


def _told_apart(paths: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Return the W&B offline folders, which are read together since several may be one run, and all other paths."""
    offline, others = list[Path](), list[str]()
    for path in paths:
        folder = Path(path)
        is_offline = folder.is_dir() and (any(folder.glob("*.wandb")) or any(folder.glob("offline-run-*")))
        (offline.append(folder) if is_offline else others.append(path))
    return offline, others


def baseline_of(comparison: Comparison, label: str | None) -> Group:
    """Return the group of this label; without a label, or where this comparison has no such group, the first."""
    return next((group for group in comparison.groups if group.label == label), comparison.groups[0])


def check_baseline(comparisons: Iterable[Comparison], label: str | None) -> None:
    """Refuse a baseline that no comparison has.

    Raises:
        UserError: with the labels that there are.
    """
    known = [group.label for comparison in comparisons for group in comparison.groups]
    if label is not None and label not in known:
        choices = ", ".join(f'"{name}"' for name in dict.fromkeys(known))
        raise UserError(f'no group is called "{label}": give --baseline one of {choices}.')


def check_output(folder: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        StoreError: it does, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file: give another --output.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / TABLE).exists():
        raise StoreError(f"{folder} holds something that is no comparison: give another --output.")


def write_comparisons(folder: Path, comparisons: Sequence[Comparison], axis: str) -> None:
    """Write `compare.csv` and the plots of each comparison, in place of those of an earlier call.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form in ("png", "svg"):
            for old in [path for name in ("success", "mixture", "loss") for path in folder.glob(f"{name}*.{form}")]:
                old.unlink()  # there may be fewer comparisons than last time
        everything = [{group.label: curve(group) for group in part.groups} for part in comparisons]
        with (folder / TABLE).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header())
            for part, curves in zip(comparisons, everything, strict=True):
                writer.writerows(
                    table_row(part.conditions, label, point) for label, points in curves.items() for point in points
                )
        for place, curves in enumerate(everything):
            save_plots(folder, curves, axis, suffix=f"_{place + 1}" if place else "")
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error.strerror or error}): give another --output.") from error


def header() -> list[str]:
    """Return the columns of `compare.csv`."""
    metrics = [[name, f"{name}_low", f"{name}_high"] if name in INTERVALS else [name] for name in METRICS]
    return ["conditions", "group", "round", "num_runs", *AXES, *(column for columns in metrics for column in columns)]


def table_row(conditions: str, label: str, point: Point) -> list[str | float]:
    """Return the row of a group and a round; a metric that nobody measured is an empty cell."""
    row: list[str | float] = [conditions, label, point.round, point.num_runs, *(point.spent[axis] for axis in AXES)]
    for name in METRICS:
        estimate = point.metrics.get(name)
        cells = ["", "", ""] if estimate is None else [_cell(value) for value in estimate[:3]]
        row += cells if name in INTERVALS else cells[:1]
    return row


def _cell(value: float) -> str | float:
    return "" if isnan(value) else value


def _read(path: str) -> tuple[list[Run], list[str]]:
    if path.startswith("wandb:"):
        from dagger_exp.analysis.wandb_source import load_server

        try:
            return load_server(path), []
        except StoreError as error:
            return [], [str(error)]
    return load_runs([Path(path)]) if Path(path).is_dir() else ([], [f"{path} is no folder."])


def _read_offline(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    from dagger_exp.analysis.wandb_source import load_offline, offline_folders

    return load_offline(dict.fromkeys(found for folder in folders for found in offline_folders(folder)))
