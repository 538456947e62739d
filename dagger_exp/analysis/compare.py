"""From paths to a comparison, and from a comparison to its files: a table of all rounds, and plots."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from math import isnan
from pathlib import Path

from dagger_exp.analysis.curves import AXES, INTERVALS, METRICS, Point, curve
from dagger_exp.analysis.groups import Comparison, Group
from dagger_exp.analysis.load import Run, load_runs
from dagger_exp.analysis.plots import FORMATS, TITLES, save_plots
from dagger_exp.analysis.wandb_source import PREFIX, load_offline, load_server, offline_folders
from dagger_exp.errors import StoreError, UserError

TABLE = "compare.csv"
"""The file by which a folder is known to be a comparison."""


def read_runs(paths: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Return the runs of all paths, each once, and a sentence for each that cannot be read."""
    offline = {path: offline_folders(Path(path)) for path in paths}
    parts = [_read(path) for path in paths if not offline[path]]
    parts.append(load_offline(dict.fromkeys(folder for found in offline.values() for folder in found)))
    runs: dict[str, Run] = {}
    for run in (run for found, _ in parts for run in found):
        runs.setdefault(str(run.folder.resolve()) if run.folder else run.place, run)
    return list(runs.values()), [complaint for _, said in parts for complaint in said]


def _read(path: str) -> tuple[list[Run], list[str]]:
    if not path.startswith(PREFIX):
        return load_runs([Path(path)]) if Path(path).is_dir() else ([], [f"{path} is no folder."])
    try:
        return load_server(path), []
    except StoreError as error:
        return [], [str(error)]


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
        for old in [path for name in TITLES for form in FORMATS for path in folder.glob(f"{name}*.{form}")]:
            old.unlink()  # there may be fewer comparisons than last time
        everything = [{group.label: curve(group) for group in part.groups} for part in comparisons]
        with (folder / TABLE).open("w", newline="") as file:
            writer = csv.DictWriter(file, header())
            writer.writeheader()
            for part, curves in zip(comparisons, everything, strict=True):
                for label, points in curves.items():
                    writer.writerows(table_row(part.conditions, label, point) for point in points)
        for place, curves in enumerate(everything):
            save_plots(folder, curves, axis, suffix=f"_{place + 1}" if place else "")
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error.strerror or error}): give another --output.") from error


def header() -> list[str]:
    """Return the columns of `compare.csv`."""
    metrics = [[name, f"{name}_low", f"{name}_high"] if name in INTERVALS else [name] for name in METRICS]
    return ["conditions", "group", "round", "num_runs", *AXES, *(column for columns in metrics for column in columns)]


def table_row(conditions: str, label: str, point: Point) -> dict[str, str | float]:
    """Return the row of a group and a round; what nobody measured is not there."""
    row = {"round": point.round, "num_runs": point.num_runs, **point.spent}
    for name, estimate in point.metrics.items():
        row[name] = estimate.mean
        if name in INTERVALS:
            row |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return {"conditions": conditions, "group": label} | {key: value for key, value in row.items() if not isnan(value)}
