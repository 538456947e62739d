"""What does a comparison look like? Three plots, as PNG for a README and as SVG for a paper."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from dagger_exp.analysis.curves import Point

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
"""Okabe and Ito's, told apart by colour-blind readers; without the yellow, which is faint on white."""
MARKERS = "osD^vP*"
"""A second round of the colours has another marker."""
AXIS_TITLES = {"teacher_queries": "teacher queries", "tokens": "tokens trained on"}
"""Where the title is not the axis's own name."""
TITLES = {
    "success": "success rate on held-out tasks, mean and 95 % interval",
    "mixture": "share of student turns (solid) and beta (dashed)",
    "loss": "training loss of the round",
}
FORMATS = ("png", "svg")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "dagger-compare",  # the same comparison is the same file
}
MANY_ROUNDS = 20
"""From twice so many points on, a marker at each would hide the line."""
MANY_GROUPS = 12
"""The bands of more groups would hide the lines; they are in the table."""
LEGEND_LETTERS = 105
"""Letters of the legend's font that a line holds."""

Curves = dict[str, list[Point]]
"""The points of each group, by its label."""


def save_plots(folder: Path, curves: Curves, axis: str, suffix: str = "") -> None:
    """Write the plots of `TITLES` as PNG and SVG.

    Args:
        folder: exists.
        axis: `round` or one of `curves.AXES`; the mixture is always against the round, which decides it.
        suffix: of the files' names, where there are several comparisons.
    """
    curves = {label: points for label, points in curves.items() if points}  # what has only begun is no line
    with rc_context(STYLE):
        for name, title in TITLES.items():
            figure = _drawn(name, title, curves, axis)
            for form in FORMATS:
                metadata = {"Date": None} if form == "svg" else None
                figure.savefig(folder / f"{name}{suffix}.{form}", format=form, dpi=160, metadata=metadata)
                figure.set_layout_engine("none")  # it is laid out now


def _drawn(name: str, title: str, curves: Curves, axis: str) -> Figure:
    figure, axes = _figure(title, "round" if name == "mixture" else axis, curves)
    if name == "loss":
        _draw(axes, curves, axis, "loss")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))  # a policy gradient's may be negative
        return figure
    axes.set_ylim(-0.02, 1.02)
    if name == "success":
        _draw(axes, curves, axis, "success_rate", band=True)
    else:
        _draw(axes, curves, "round", "student_turn_rate")
        _draw(axes, curves, "round", "beta", linestyle="--", linewidth=1.2, marker="")
    return figure


def _figure(title: str, axis: str, curves: Curves) -> tuple[Figure, Axes]:
    """Return a figure that names the groups below the plot, where no line runs, and is higher for many of them."""
    styles = zip(curves, _styles(curves), strict=True)
    handles = [Line2D([], [], label=label, **style) for label, style in styles]
    num_columns = max(1, min(4, LEGEND_LETTERS // (max(map(len, curves), default=0) + 6)))
    figure = Figure(figsize=(7, 4 + 0.18 * ceil(len(curves) / num_columns)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11)
    axes.set_xlabel(AXIS_TITLES.get(axis, axis))
    if axis == "round":
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(handles=handles, loc="outside lower left", ncols=num_columns, fontsize=8)
    return figure, axes


def _draw(axes: Axes, curves: Curves, axis: str, metric: str, *, band: bool = False, **look: Any) -> None:
    for points, style in zip(curves.values(), _styles(curves), strict=True):
        having = [point for point in points if metric in point.metrics]
        places = [point.at(axis) for point in having]
        estimates = [point.metrics[metric] for point in having]
        axes.plot(places, [estimate.mean for estimate in estimates], **(style | look))
        if band and len(curves) <= MANY_GROUPS:
            low, high = [estimate.low for estimate in estimates], [estimate.high for estimate in estimates]
            axes.fill_between(places, low, high, color=style["color"], alpha=0.10, linewidth=0)


def _styles(curves: Curves) -> Iterator[dict[str, Any]]:
    """Yield the look of each group, the same in every plot."""
    every = max(1, max(map(len, curves.values()), default=0) // MANY_ROUNDS)
    for place in range(len(curves)):
        marker = MARKERS[place // len(COLORS) % len(MARKERS)]
        yield {"color": COLORS[place % len(COLORS)], "marker": marker, "markersize": 4, "markevery": every}
