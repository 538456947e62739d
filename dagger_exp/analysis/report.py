"""What happened in a run, to look at and to show? One HTML page that holds everything and asks nothing of the net."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagger_exp.analysis.episodes import COLLECT, EVALUATE, EpisodeGroup, episode_groups, evenly, spread
from dagger_exp.analysis.failures import failure_table, last_evaluated
from dagger_exp.analysis.groups import Group, labels
from dagger_exp.analysis.load import Row, Run
from dagger_exp.analysis.report_groups import alone, final_row, page_groups, rows_of
from dagger_exp.analysis.settings import flat
from dagger_exp.errors import StoreError
from dagger_exp.types import Episode, StopReason, Turn

MAX_DATA_BYTES = 9_500_000
"""Of episodes and curves; long texts are cut in the middle, so that a page can still be sent around."""
MAX_FAILURES = 200
"""Rows of `failures.csv` that are shown of a run or a group."""
HERE = Path(__file__).parent


@dataclass(slots=True, kw_only=True)
class Report:
    """A page and what there is to say about it.

    Attributes:
        html: the page.
        num_shown, num_episodes: episodes in it, and episodes that the runs have.
        complaints: a sentence for each run or part of one that is not in the figures.
        notes: a sentence for each reason to trust them less.
    """

    html: str = ""
    num_shown: int
    num_episodes: int
    complaints: Sequence[str]
    notes: Sequence[str]


@dataclass(slots=True)
class Columns:
    """Episodes and turns as columns of small numbers, every text once.

    Attributes:
        texts: each text's place in the table of texts.
        episodes, turns: columns by name; a turn belongs to the last episode whose `first_turn` is not after it.
    """

    texts: dict[str, int] = field(default_factory=dict)
    episodes: dict[str, list[Any]] = field(default_factory=dict)
    turns: dict[str, list[Any]] = field(default_factory=lambda: {"actor": []})

    def add(self, run_index: int, group: EpisodeGroup, episode: Episode) -> None:
        """Append an episode of this run and group."""
        row = {
            "run": run_index,
            "round": group.round_index,
            "phase": group.phase,
            "episode": episode.episode_index,
            "task": self._text(episode.task_id),
            "stop_reason": episode.stop_reason.value,
            "error": self._text(episode.error),
            "first_turn": len(self.turns["actor"]),
        }
        _append(self.episodes, row)
        for turn in episode.turns:
            _append(self.turns, self._turn(turn))

    def _turn(self, turn: Turn) -> dict[str, Any]:
        return {
            "actor": turn.actor.value[0].upper(),
            "observation": self._text(turn.observation),
            "action": self._text(turn.response_text),
            "label": None if turn.label_text is None else self._text(turn.label_text),
            "beta": _plain(turn.beta),
            "coin": _plain(turn.coin),
            "kappa": turn.kappa,
            "valid": int(turn.valid),
            "action_error": turn.action_error,
            "reward": _plain(turn.reward),
            "finish_reason": self._text(turn.finish_reason),
        }

    def _text(self, text: str) -> int:
        return self.texts.setdefault(text, len(self.texts))


def make_report(runs: Sequence[Run], max_episodes: int) -> Report:
    """Return the page of these runs with at most so many of their episodes, evenly from every phase of every round."""
    found = [episode_groups(run.folder) if run.folder else ([], []) for run in runs]
    played = [parts for parts, _ in found]
    complaints = list(dict.fromkeys(complaint for _, some in found for complaint in some))
    sources = [(place, part) for place, parts in enumerate(played) for part in parts]
    columns = _columns(sources, max_episodes, complaints)
    groups, left_out, notes = page_groups(runs)
    by_id = {id(run): place for place, run in enumerate(runs)}
    places = [[by_id[id(run)] for run in group.members] for group in groups]
    differences = labels([group.settings for group in groups])
    report = Report(
        num_shown=len(columns.episodes.get("run", ())),
        num_episodes=sum(len(part) for _, part in sources),
        complaints=[*complaints, *left_out],
        notes=notes,
    )
    report.html = _page(
        report=report,
        runs=[_about(run, parts) for run, parts in zip(runs, played, strict=True)],
        reasons=[(reason.value, reason.is_infrastructure) for reason in StopReason],
        groups=[
            {"group": group, "difference": difference, "places": some, **_about_group(group, [played[i] for i in some])}
            for group, difference, some in zip(groups, differences, places, strict=True)
        ],
        data=_data(runs, groups, places, columns),
    )
    return report


def cut_to(texts: Sequence[str], max_bytes: int) -> list[str]:
    """Return the texts, the longest cut in the middle to one length, so that together they fit in about `max_bytes`."""
    sizes = [len(_json(text).encode()) for text in texts]
    limit = _fitting(sizes, max_bytes)
    return [
        text if size <= limit else _cut(text, limit * len(text) // size)
        for text, size in zip(texts, sizes, strict=True)
    ]


def _fitting(sizes: Iterable[int], total: int) -> int:
    """Return the largest limit such that the sizes, each cut down to it, have at most this total."""
    ascending = sorted(sizes)
    for place, size in enumerate(ascending):
        even = total // (len(ascending) - place)
        if size > even:
            return even
        total -= size
    return ascending[-1] if ascending else 0


def _cut(text: str, length: int) -> str:
    half = max(0, length - 60) // 2
    end = len(text) - half
    return f"{text[:half]}\n[... {end - half:,} characters left out of this page ...]\n{text[end:]}"


def _columns(places: Sequence[tuple[int, EpisodeGroup]], limit: int, complaints: list[str]) -> Columns:
    columns = Columns()
    shares = spread([len(group) for _, group in places], limit)
    for (run_index, group), share in zip(places, shares, strict=True):
        try:
            episodes = group.read(evenly(len(group), share))
        except StoreError as error:
            complaints.append(str(error))
            continue
        for episode in episodes:
            columns.add(run_index, group, episode)
    return columns


def _data(runs: Sequence[Run], groups: Sequence[Group], places: Sequence[Sequence[int]], columns: Columns) -> str:
    """Return what the page's script reads, as JSON."""
    data: dict[str, Any] = {
        "runs": [{"name": run.name, "rows": _plain_rows(rows_of(alone(run)))} for run in runs],
        "groups": [
            {"label": group.label, "runs": some, "rows": _plain_rows(rows_of(group))}
            for group, some in zip(groups, places, strict=True)
        ],
        "infrastructure": [reason.value for reason in StopReason if reason.is_infrastructure],
        "episodes": columns.episodes,
        "turns": columns.turns,
    }
    data["texts"] = cut_to(list(columns.texts), MAX_DATA_BYTES - len(_json(data)))
    return _json(data)


def _about(run: Run, parts: Sequence[EpisodeGroup]) -> dict[str, Any]:
    """Return what the head and the tables of the page say of a run."""
    config = flat(run.config)
    return {
        "run": run,
        "method": run.choices.get("method") or run.config.get("name", ""),
        "seed": run.config.get("seed", ""),
        "config": config,
        "last": run.rows[-1] if run.rows else {},
        "num_labels": sum(row.get("rollout/num_labels", 0) for row in run.rows),
        "num_rounds": config.get("rounds.num_rounds"),
        "open_rounds": [(part.round_index, len(part)) for part in parts if part.is_open],
    }


def _about_group(group: Group, played: Sequence[Sequence[EpisodeGroup]]) -> dict[str, Any]:
    """Return what the tables of the page say of a group, whose members played these episodes."""
    return {
        "final": final_row(group),
        "num_rounds": flat(group.members[0].config).get("rounds.num_rounds"),
        "tables": [(phase, failure_table(played, group.members, phase)) for phase in (COLLECT, EVALUATE)],
        "last_evaluated": last_evaluated(played[: len(group.shown)]),  # its figures are of the same runs
        "failures": _failures_of(group.members),
    }


def _failures_of(runs: Sequence[Run]) -> tuple[list[str], list[list[str]], int]:
    """Return columns, first rows and number of rows of these `failures.csv`; of several runs, with their names."""
    columns: list[str] = []
    rows: list[list[str]] = []
    for run in runs:
        path = run.folder / "failures.csv" if run.folder else None
        if path is not None and path.is_file():
            with path.open(newline="", encoding="utf-8", errors="replace") as file:
                head, *some = list(csv.reader(file)) or [[]]
            columns = columns or head
            rows += some if len(runs) == 1 else [[run.name, *row] for row in some]
    return columns if len(runs) == 1 else ["run", *columns], rows[:MAX_FAILURES], len(rows)


def _page(**values: Any) -> str:
    import jinja2
    from markupsafe import Markup

    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in ("report_charts.js", "report.js"))
    values |= {
        "css": Markup((HERE / "report.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own files
        # The browser runs the script with this hash and no other, whatever a text may hold.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "data": Markup(values["data"]),  # noqa: S704 - holds no `<`, see `_json`
    }
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["said"] = _said
    return environment.from_string((HERE / "report.html.j2").read_text(encoding="utf-8")).render(values)


def _append(columns: dict[str, list[Any]], row: Mapping[str, Any]) -> None:
    for name, value in row.items():
        columns.setdefault(name, []).append(value)


def _plain_rows(rows: Sequence[Row]) -> list[dict[str, float | None]]:
    return [{key: _plain(value) for key, value in row.items()} for row in rows]


def _plain(value: float | None) -> float | None:
    """Return a number short enough for a page; None for what JSON cannot hold."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _json(value: Any) -> str:
    """Return JSON without `<`, so that no text in it can end the element of the page that holds it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _said(value: Any) -> str:
    """Return a value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
