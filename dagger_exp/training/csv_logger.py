"""`metrics.csv`: every logged row once, also after a resume (Lightning's own CSV logger deletes the earlier ones)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger

from dagger_exp.store.files import written_aside

AXES = ("trainer/global_step", "round")
Place = tuple[str, str]


class CsvLogger(Logger):
    """Appends rows; one that is logged again after a resume replaces the earlier one.

    The file is written anew only then, when a column is new, and where a kill has cut its last row.

    Args:
        path: of the CSV file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        rows = read_csv(path)
        self.columns = list(rows[0]) if rows else []
        self._earlier = {_place(row) for row in rows}
        self._is_torn = path.exists() and not path.read_bytes().endswith(b"\n")

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        return None

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        new = [name for name in metrics if name not in self.columns]
        place = _place(metrics)
        if new or self._is_torn or place in self._earlier:
            self.columns += new
            self._earlier.discard(place)
            rows = read_csv(self.path)[: -1 if self._is_torn else None]  # what was cut is logged again
            write_csv(self.path, self.columns, [row for row in rows if None not in row and _place(row) != place])
            self._is_torn = False
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(metrics)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none where it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    with written_aside(path) as file:
        file.write(text.getvalue().encode(errors="replace"))


def _place(row: Mapping[str, Any]) -> Place | None:
    """Return where on its axis a row stands, None where it has no axis."""
    return next(((axis, str(row[axis])) for axis in AXES if row.get(axis) not in (None, "")), None)
