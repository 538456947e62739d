"""Compare runs: which setting does better, by how much, and how sure is that?

    dagger-compare outputs/sweeps/beta                        # a sweep: groups by what differs, means over seeds
    dagger-compare outputs/runs/*_sft outputs/runs/*_dagger   # the first group that is read is the baseline
    dagger-compare outputs/sweeps/beta --axis labels --baseline schedule=linear
    dagger-compare wandb:entity/project/group                 # runs on a W&B server
    dagger-compare RUN/wandb/offline-run-*                    # runs that were logged offline

Runs with the same settings are one group; seeds, folders, addresses, time-outs and budgets are no settings. A figure is
the mean over the runs of a group with a 95 % interval: Student's t over runs, Wilson's of a single run's tasks.
A difference is of the same seeds and held-out tasks. It has a t-interval over seeds (after +-), and beside it a
bootstrap over seeds and tasks, which is too narrow over few seeds that differ much. p is the t-test over seeds, or
McNemar's exact test over tasks where one seed is shared; Holm corrects it for the number of groups. Runs that were
evaluated under other conditions stand in a table of their own. Unfinished runs are named and in no final figure.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from datetime import datetime
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dagger_exp.analysis.groups import Comparison, Group, compare, notes
from dagger_exp.analysis.workspace import build_workspace, save_workspace
from dagger_exp.cli.complaints import complain, warn
from dagger_exp.errors import UserError

if TYPE_CHECKING:  # numpy and scipy stay out of `--help`
    from dagger_exp.analysis.pairs import Difference

AXES = ("round", "labels", "teacher_queries", "tokens", "seconds")
"""The round, and what `analysis.curves` sums; here too, because `--help` waits for no scipy."""
WIDTH = 100
"""Columns where the output goes to a file or a pipe; on a narrower terminal columns stand closer."""
SMALLEST_P = 0.001
"""Smaller p-values are shown as smaller than this."""
MANY_RUNS = 40
"""More than these are not listed one by one."""


def main() -> None:
    """Compare the runs of the command line; a mistake is said in one sentence."""
    options = _options()
    try:
        compare_paths(options)
    except (UserError, OSError) as error:
        sys.exit(complain(error))


def compare_paths(options: argparse.Namespace) -> None:
    """Read the runs, print tables, and write a table and plots.

    Raises:
        UserError: there is nothing to compare, no place to write it to, or no such baseline or project.
    """
    from dagger_exp.analysis import compare as files

    folder = options.output or default_output(options.paths)
    files.check_output(folder)
    runs, unread = files.read_runs(options.paths)
    if not runs:
        raise UserError(f"no runs in {' '.join(options.paths)}: {' '.join(unread)}")
    comparisons, left_out = compare(runs)
    files.check_baseline(comparisons, options.baseline)
    workspace = build_workspace(options.wandb, comparisons[0]) if options.wandb else None
    warn([*unread, *left_out])
    console = _console()
    for comparison in comparisons:
        _show(console, comparison, files.baseline_of(comparison, options.baseline))
    if len(comparisons) > 1:
        parts = "; ".join(part.conditions for part in comparisons)
        console.print(f"Not compared with each other, being evaluated otherwise: {escape(parts)}.\n", highlight=False)
    files.write_comparisons(folder, comparisons, options.axis)
    print(f"in {folder}: {files.TABLE}, and success, mixture and loss as PNG and SVG")
    if workspace is not None:
        print(f"on W&B: {save_workspace(workspace)}")


def default_output(paths: list[str]) -> Path:
    """Return `comparison/` in the sweep where one is compared, else a new folder of its own."""
    if len(paths) == 1 and any(Path(paths[0]).glob("*/manifest.json")):
        return Path(paths[0]) / "comparison"
    return Path("outputs/comparisons") / datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")


def group_table(comparison: Comparison) -> Table:
    """Return where the groups ended, and what they had spent there."""
    from dagger_exp.analysis.curves import final_point

    table = _table("means over runs", "success", "95 %", "runs", "labels", "queries", "tokens", "seconds")
    for group in comparison.groups:
        if not group.runs:
            table.add_row(escape(group.label), "-", "-", group.num_runs, *["-"] * 4)
            continue
        point = final_point(group.runs)
        success = point.metrics["success_rate"]
        spent = (f"{point.spent[axis]:,.0f}" for axis in AXES[1:])
        interval = f"{success.low:.3f}-{success.high:.3f}"
        table.add_row(escape(group.label), f"{success.mean:.3f}", interval, group.num_runs, *spent)
    return table


def difference_table(differences: Iterable[Difference], baseline: Group) -> Table:
    """Return how the groups differ from the baseline."""
    table = _table(f"less {baseline.label}", "success", "95 % t", "bootstrap", "p", "Holm", "seeds", "pairs")
    for row in differences:
        margin = "-" if isnan(row.margin) else f"±{row.margin:.3f}"
        bootstrap = "-" if isnan(row.low) else f"{row.low:+.3f} to {row.high:+.3f}"
        p_values = map(_shown_p, (row.p_value, row.holm))
        counts = (str(row.num_seeds or "none"), str(row.num_pairs or "-"))
        table.add_row(escape(row.group), f"{row.difference:+.3f}", margin, bootstrap, *p_values, *counts)
    return table


def _shown_p(p_value: float | None) -> str:
    if p_value is None:
        return "-"
    return f"{p_value:.3f}" if p_value >= SMALLEST_P else f"<{SMALLEST_P}"


def run_table(comparison: Comparison) -> Table:
    """Return where each run ended, with Wilson's interval over its held-out tasks."""
    from dagger_exp.analysis.curves import estimate

    table = _table("each run", "seed", "success", "95 %", "tasks")
    for group in comparison.groups:
        for run in group.runs:
            row = run.rows[-1]
            num_tasks = row.get("eval/num_tasks", 0) - row.get("eval/num_failed", 0)
            success = estimate("success_rate", [row])
            figures = (f"{success.mean:.3f}", f"{success.low:.3f}-{success.high:.3f}", f"{num_tasks:.0f}")
            table.add_row(escape(group.label), str(run.config.get("seed", "-")), *figures)
    return table


def _show(console: Console, comparison: Comparison, baseline: Group) -> None:
    from dagger_exp.analysis.pairs import differences

    rows, complaints = differences(comparison.groups, baseline)
    warn(complaints)
    tables = [group_table(comparison), *([difference_table(rows, baseline)] if rows else [])]
    if sum(len(group.runs) for group in comparison.groups) <= MANY_RUNS:
        tables.append(run_table(comparison))
    heads = [f"evaluated with {comparison.conditions}"] if comparison.conditions else []
    heads += [f"the groups differ in: {', '.join(comparison.differing)}"] if comparison.differing else []
    for line in heads:
        console.print(escape(line), "", highlight=False, sep="\n")
    for table in tables:
        table.collapse_padding = console.width < WIDTH
        console.print(table, "")
    said = notes(comparison, baseline)
    if num_dropped := sum(row.num_dropped for row in rows):
        said.append(f"{num_dropped} pairs of episodes are left out: infrastructure failed one of the two.")
    for note in said:
        console.print(f"note: {escape(note)}", "", highlight=False, sep="\n")


def _table(title: str, *figures: str) -> Table:
    """Return an empty table of groups."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("group", overflow="fold", min_width=12)
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _console() -> Console:
    console = Console()
    return Console(width=max(80, console.width) if console.is_terminal else WIDTH)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dagger-compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="runs, sweeps, folders of them, or wandb:...")
    parser.add_argument("--axis", choices=AXES, default="round", help="of the plots of success and loss")
    parser.add_argument("--baseline", metavar="LABEL", help="the group to compare with; by default the first read")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="by default comparison/ in a sweep folder")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="save the same view as a workspace there")
    return parser.parse_args()
