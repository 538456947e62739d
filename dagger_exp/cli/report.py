"""dagger-report: one HTML page of a run, or of several side by side, to look at and to send around.

dagger-report outputs/runs/FOLDER                  writes report.html into the run folder
dagger-report outputs/sweeps/NAME                  all runs of a sweep, into the sweep's folder
dagger-report RUN RUN --output compared.html       these runs, into a file of that name
dagger-report outputs/runs/FOLDER --episodes 2000  more episodes to browse

The page needs no server and no network. A run that still goes on is shown as far as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dagger_exp.cli.complaints import complain, warn
from dagger_exp.errors import DaggerError, UserError

if TYPE_CHECKING:
    from dagger_exp.analysis.load import Run


def main() -> None:
    """Entry point of the console script."""
    options = _options()
    try:
        report(options.paths, options.output, options.episodes)
    except (DaggerError, OSError) as error:
        sys.exit(complain(error))


def report(paths: Sequence[Path], output: Path | None, max_episodes: int) -> None:
    """Write the page of the runs that these paths are or hold; what cannot be read is said, and the rest goes on.

    Raises:
        UserError: no run can be read, or the page cannot be written.
    """
    from dagger_exp.analysis.load import load_runs
    from dagger_exp.analysis.report import make_report

    runs, complaints = load_runs(paths)
    warn(complaints)
    if not runs:
        raise UserError("there is no run to report on: give a run folder, or a folder that holds some.")
    made = make_report(runs, max_episodes)
    warn(made.complaints)
    place = output or default_output(paths, runs)
    _write(place, made.html)
    for note in made.notes:
        print(f"note: {note}")
    size = place.stat().st_size / 1e6
    noun = "run" if len(runs) == 1 else "runs"
    print(f"{place}: {len(runs)} {noun}, {made.num_shown} of {made.num_episodes} episodes, {size:.1f} MB")


def default_output(paths: Sequence[Path], runs: Sequence[Run]) -> Path:
    """Return where the page goes: into the folder of a single run or sweep, else into `outputs/`."""
    if len(runs) == 1 and runs[0].folder:
        return runs[0].folder / "report.html"
    return (paths[0] if len(paths) == 1 else Path("outputs")) / "report.html"


def _write(place: Path, html: str) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(html, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{place} cannot be written ({error.strerror}): give another file with --output.") from error


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dagger-report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a run folder, or a folder that holds some")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the page")
    parser.add_argument(
        "--episodes",
        type=_count,
        default=500,
        metavar="N",
        help="at most so many episodes in all, evenly from runs, rounds and phases (default: %(default)s)",
    )
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of episodes, such as 500")
    return int(text)


if __name__ == "__main__":
    main()
