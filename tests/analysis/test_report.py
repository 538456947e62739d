"""The page holds what the store holds, whatever the texts are, and asks nothing of the net."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.analysis.episodes import evenly, spread
from dagger_exp.analysis.failures import RATES
from dagger_exp.analysis.groups import compare, notes
from dagger_exp.analysis.load import load_runs
from dagger_exp.analysis.report import cut_to, make_report
from dagger_exp.cli.report import main, report
from dagger_exp.evaluation.metrics import evaluation_metrics
from dagger_exp.rollout.metrics import rollout_metrics
from dagger_exp.store.compaction import compact
from dagger_exp.store.files import write_json
from dagger_exp.store.schema import to_table
from dagger_exp.store.store import Store
from dagger_exp.types import SCHEMA_VERSION, Actor, Episode, StopReason, Turn

HOSTILE = "</script><script>alert(1)</script><!-- <script> ]]> & \u2028 \x00"


def make_turn(index: int, **changes: Any) -> Turn:
    """Return a turn of the student with a label that differs where the index is odd."""
    fields: dict[str, Any] = {
        "turn_index": index,
        "actor": Actor.STUDENT,
        "observation": f"line one {index}\nline two",
        "context_ids": (1,),
        "starts_branch": index == 0,
        "response_text": "look",
        "response_ids": (2,),
        "label_text": "go" if index % 2 else "look",
        "label_ids": (3,),
        "beta": 0.25,
        "coin": 0.5,
    }
    return Turn(**fields | changes)


def make_episode(round_index: int, index: int, **changes: Any) -> Episode:
    """Return an episode of three turns."""
    fields: dict[str, Any] = {
        "task_id": f"task-{index}",
        "stop_reason": StopReason.SOLVED,
        "turns": tuple(make_turn(turn_index) for turn_index in range(3)),
    }
    return Episode(round_index, index, **fields | changes)


def make_run(folder: Path, closed: Sequence[Episode], opened: Sequence[Episode] = (), **status: str) -> Path:
    """Write a run folder: round 0 is closed, round 1 is open where it has episodes; with one evaluation."""
    store = Store(folder / "rounds", folder.name)
    for episode in (*closed, *opened):
        store.commit(episode)
    store.close_round(0, len(closed), {})
    compact(folder / "eval" / "round_000.parquet", (to_table(folder.name, [episode]) for episode in closed))
    row = {"round": 0, "round/beta": 0.5, "round/loss": float("nan"), "rollout/num_labels": 6, "eval/success_rate": 0.5}
    config = {"seed": 0, "name": folder.name, "rounds": {"num_rounds": 2}}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "config": config,
        "commit": "c0ffee",
        "command": ["dagger-train", "a=<b>"],
    }
    write_json(folder / "manifest.json", manifest)
    write_json(folder / "status.json", {"state": "finished", "error": ""} | status)
    write_json(folder / "summary.json", {"rounds": [row]})
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Give a finished run of two episodes."""
    return make_run(tmp_path / "run", [make_episode(0, 0), make_episode(0, 1, stop_reason=StopReason.TIMEOUT)])


def make_sweep(folder: Path, num_seeds: int = 3) -> list[Path]:
    """Write runs of two schedules; those of seed s end with a success rate of s / 10, and s / 10 + 0.5 with cosine."""
    made = []
    for schedule, base in (("InverseSigmoid", 0.0), ("Cosine", 0.5)):
        for seed in range(num_seeds):
            run = make_run(folder / f"{schedule}-{seed}", [make_episode(0, 0), make_episode(0, 1)])
            manifest = json.loads((run / "manifest.json").read_text())
            config = {"name": "dagger", "seed": seed, "schedule": {"_target_": f"dagger_exp.schedules.{schedule}"}}
            write_json(run / "manifest.json", manifest | {"config": config})
            rate = base + seed / 10
            row = {"round": 0, "eval/success_rate": rate, "rollout/num_labels": 6 + seed, "round/loss": rate}
            write_json(run / "summary.json", {"rounds": [row | {"rollout/student_turn_rate": 0.5}]})
            made.append(run)
    return made


def cells_of(html: str, table: str, place: int = 0) -> list[list[str]]:
    """Return the texts of the cells of a table, row by row: of the first of its class, or of the one at a place."""
    found = re.findall(rf'<table class="{table}">.*?</table>', html, re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", found[place], re.DOTALL)
    cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in rows]
    return [[" ".join(re.sub(r"<.*?>", "", cell, flags=re.DOTALL).split()) for cell in row] for row in cells]


def page_of(*folders: Path, max_episodes: int = 500) -> str:
    """Return the page of these runs."""
    return make_report(load_runs(folders)[0], max_episodes).html


def data_of(html: str) -> dict[str, Any]:
    """Return what the page's script reads, as a browser finds it."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_page_has_the_turns_of_the_store(run_folder: Path) -> None:
    data = data_of(page_of(run_folder))
    texts, turns, episodes = data["texts"], data["turns"], data["episodes"]
    expected = [
        turn for episode in Store.open(run_folder / "rounds").read(0).episodes([0, 1]) for turn in episode.turns
    ]
    assert [texts[text] for text in turns["observation"][:6]] == [turn.observation for turn in expected]
    assert [texts[text] for text in turns["action"][:6]] == [turn.response_text for turn in expected]
    assert [texts[text] for text in turns["label"][:6]] == [turn.label_text for turn in expected]
    assert turns["coin"][:6] == [turn.coin for turn in expected]
    assert set(turns["actor"]) == {"S"}
    assert episodes["phase"] == ["collect", "collect", "evaluate", "evaluate"]
    assert episodes["stop_reason"] == ["solved", "timeout"] * 2
    assert episodes["first_turn"] == [0, 3, 6, 9]
    assert len(texts) == len(set(texts))


def test_no_figure_that_json_cannot_hold_reaches_the_page(run_folder: Path) -> None:
    assert data_of(page_of(run_folder))["runs"][0]["rows"][0]["round/loss"] is None


def test_the_page_has_no_outside_address(run_folder: Path) -> None:
    html = page_of(run_folder)
    addresses = re.findall(
        r"""(?:https?:)?//[\w.-]+\.\w+[^\s"']*""", re.sub(r"^\s*//.*$", "", html, flags=re.MULTILINE)
    )
    assert set(addresses) <= {"http://www.w3.org/2000/svg"}  # the name of SVG, which nobody fetches
    assert re.findall(r'(?:src|href)="([^"]*)"', html) == ["data:,"]
    assert "url(" not in html
    assert "@import" not in html


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    turn = make_turn(0, observation=HOSTILE, response_text=HOSTILE, label_text=HOSTILE + "!")
    hostile = make_episode(0, 0, task_id=HOSTILE, turns=(turn,), error=HOSTILE)
    folder = make_run(tmp_path / "run", [hostile], state="failed", error=HOSTILE)
    (folder / "failures.csv").write_text(f'phase,error\ncollect,"{HOSTILE}"\n')
    html = page_of(folder)
    assert "<script>alert" not in html
    assert html.count("</script>") == 2  # the data's and the code's
    data = data_of(html)
    assert data["texts"][data["turns"]["observation"][0]] == HOSTILE
    assert data["texts"][data["episodes"]["task"][0]] == HOSTILE


def test_the_head_tells_how_a_run_failed(tmp_path: Path) -> None:
    html = page_of(make_run(tmp_path / "run", [make_episode(0, 0)], state="failed", error="the engine died"))
    assert "the engine died" in html
    assert "c0ffee" in html
    assert "rounds.num_rounds" in html


def test_an_open_round_is_shown_and_named(tmp_path: Path) -> None:
    opened = [make_episode(1, 0), make_episode(1, 3, turns=(), stop_reason=StopReason.ENGINE)]
    html = page_of(make_run(tmp_path / "run", [make_episode(0, 0)], opened, state="running"))
    assert "round 1 is still open; its 2 committed" in html
    assert data_of(html)["episodes"]["round"] == [0, 1, 1, 0]
    assert data_of(html)["episodes"]["episode"] == [0, 0, 3, 0]


def test_the_failure_table_has_reasons_and_rates_of_every_round(tmp_path: Path) -> None:
    errors = (make_turn(0, action_error="syntax"), make_turn(1, action_error="runtime"), make_turn(2, valid=False))
    closed = [
        make_episode(0, 0, turns=(*errors, make_turn(3, action_error="runtime"))),
        make_episode(0, 1, stop_reason=StopReason.LOOP, turns=(make_turn(0, actor=Actor.TEACHER, valid=False),)),
        make_episode(0, 2, stop_reason=StopReason.SANDBOX, turns=errors),
    ]
    folder = make_run(tmp_path / "run", closed, [make_episode(1, 0, stop_reason=StopReason.MAX_TURNS)])
    row = {"round": 0, **rollout_metrics(closed), **evaluation_metrics(closed)}
    write_json(folder / "summary.json", {"rounds": [row]})
    html = page_of(folder)
    tables = [
        [re.findall(r">([^<]+?)</t[hd]>", line) for line in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]
        for table in re.findall(r'<table class="stops">.*?</table>', html, re.DOTALL)
    ]
    rates = [["0.500", "\u2013"], ["0.500", "\u2013"], ["0.250", "\u2013"], ["0.250", "\u2013"], ["0.500", "\u2013"]]
    assert tables[0] == [
        ["round", "0", "1*"],
        ["solved", "1", "·"],
        ["max_turns", "·", "1"],
        ["loop", "1", "·"],
        ["sandbox †", "1", "·"],
        ["episodes", "3", "1"],
        *([name, *values] for name, values in zip(RATES, rates, strict=True)),
    ]
    of_one_round = [["submission_rate", "0.500"], ["loop_rate", "0.500"], ["malformed_rate", "0.250"]]
    assert tables[1][-5:-2] == of_one_round
    assert "† Infrastructure's doing" in html
    assert data_of(html)["turns"]["action_error"][:4] == ["syntax", "runtime", "", "runtime"]


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    write_json(tmp_path / "run" / "manifest.json", {"schema_version": SCHEMA_VERSION, "config": {}})
    html = page_of(tmp_path / "run")
    assert "No episode is on the disk yet" in html
    assert "†" not in html.partition("<script")[0], "no mark, so no word about it"
    assert data_of(html)["episodes"] == {}


def test_several_runs_are_told_apart(run_folder: Path) -> None:
    other = make_run(run_folder.parent / "other", [make_episode(0, 0)])  # the same config and the same seed
    html = page_of(run_folder, other)
    data = data_of(html)
    assert [run["name"] for run in data["runs"]] == ["run", "other"]
    assert [(group["label"], group["runs"]) for group in data["groups"]] == [("run", [0]), ("other", [1])]
    assert data["episodes"]["run"] == [0] * 4 + [1] * 2
    assert [row[0] for row in cells_of(html, "runs")] == ["run", "run", "other"]


def test_runs_that_differ_in_their_seed_are_one_line_with_its_interval(tmp_path: Path) -> None:
    html = page_of(*make_sweep(tmp_path))
    data = data_of(html)
    first, second = data["groups"]
    assert (first["label"], first["runs"]) == ("schedule=inverse_sigmoid", [0, 1, 2])
    assert (second["label"], second["runs"]) == ("schedule=cosine", [3, 4, 5])
    margin = 4.302653 * 0.1 / 3**0.5  # Student's t with two degrees of freedom
    row = second["rows"][0]
    figures = [row[key] for key in ("eval/success_rate", "eval/success_low", "eval/success_high", "rollout/num_labels")]
    assert figures == pytest.approx([0.6, 0.6 - margin, 0.6 + margin, 7], abs=1e-5)
    assert [run["rows"][0]["eval/success_rate"] for run in data["runs"]] == [0, 0.1, 0.2, 0.5, 0.6, 0.7]
    assert not [key for run in data["runs"] for key in run["rows"][0] if key.endswith(("_low", "_high"))]
    assert cells_of(html, "runs groups")[1:] == [
        ["schedule=inverse_sigmoid", "3", "10.0 % 0.0\u201334.8", "1", "7", "0.100"],
        ["schedule=cosine", "3", "60.0 % 35.2\u201384.8", "1", "7", "0.600"],
    ]
    assert [row[:3] for row in cells_of(html, "runs")[-2:]] == [
        ["Cosine-1", "1", "finished"],
        ["Cosine-2", "2", "finished"],
    ]


def test_what_differs_is_called_as_dagger_compare_calls_it(tmp_path: Path) -> None:
    folders = make_sweep(tmp_path, num_seeds=1)
    html = page_of(*folders)
    assert [row[-1] for row in cells_of(html, "runs")[1:]] == ["schedule=inverse_sigmoid", "schedule=cosine"]
    assert [group["label"] for group in data_of(html)["groups"]] == [folder.name for folder in folders]


def test_the_page_leaves_out_what_dagger_compare_leaves_out_and_has_its_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = make_sweep(tmp_path)
    row = {"eval/success_rate": 0.9} | {"round": 0, "rollout/num_labels": 1}
    broken = {"round": 1, "rollout/num_labels": 1, "eval/num_tasks": 50, "eval/num_failed": 7}
    write_json(folders[0] / "summary.json", {"rounds": [row, broken]})
    manifest = json.loads((folders[1] / "manifest.json").read_text())
    write_json(folders[1] / "manifest.json", manifest | {"commit": "another" * 5})
    report([tmp_path], None, 500)
    html, said = (tmp_path / "report.html").read_text(), capsys.readouterr()
    comparisons, left_out = compare(load_runs([tmp_path])[0])
    expected = [*left_out, *notes(comparisons[0], comparisons[0].groups[0])]
    assert [sentence.split(" (")[0].rpartition("/")[2] for sentence in expected] == [
        "InverseSigmoid-0 has no success rate in its last round",
        "The runs are of 2 commits: c0ffee",
        "Fewer than 5 seeds in 2 of 2 groups: a t-interval is wide then, and a bootstrap may be much too narrow.",
    ]
    for sentence in expected:
        assert f"<li>{escape(sentence)}</li>" in html
        assert sentence in said.err + said.out
    of_broken = next(row for row in cells_of(html, "runs") if row[0] == "InverseSigmoid-0")
    assert of_broken[3] == "\u2013", "the rate of the round before is not that of the run"
    assert [row[1] for row in cells_of(html, "runs groups")[1:]] == ["3", "2 of 3"]


def test_a_run_that_goes_on_is_in_no_mean_of_its_group(tmp_path: Path) -> None:
    folders = make_sweep(tmp_path)
    write_json(folders[-1] / "status.json", {"state": "running", "error": ""})
    html = page_of(*folders)
    assert cells_of(html, "runs groups")[2][:2] == ["schedule=cosine", "2 of 3"]
    group = data_of(html)["groups"][1]
    assert group["rows"][0]["eval/success_rate"] == pytest.approx(0.55)
    assert group["runs"] == [3, 4, 5]
    assert cells_of(html, "stops")[2] == ["schedule=cosine", "100.0 %", "4"]


def test_a_group_has_one_failure_table(tmp_path: Path) -> None:
    folders = make_sweep(tmp_path)
    timeout = make_episode(0, 0, stop_reason=StopReason.TIMEOUT)
    compact(folders[0] / "eval" / "round_000.parquet", [to_table("run", [timeout])])
    row = {"round": 0, "eval/success_rate": 0.5, "rollout/num_labels": 0}
    for folder, rate in zip(folders, (0.5, 0.25, 0.75), strict=False):
        write_json(folder / "summary.json", {"rounds": [row | {"eval/loop_rate": rate}]})
        (folder / "failures.csv").write_text("phase,error\ncollect,gone\n")
    html = page_of(*folders)
    assert html.count('<table class="stops">') == 5  # an overview, and two phases of two groups
    assert cells_of(html, "stops") == [
        ["group", "solved", "timeout †", "episodes"],
        ["schedule=inverse_sigmoid", "80.0 %", "20.0 %", "5"],
        ["schedule=cosine", "100.0 %", "·", "6"],
    ]
    evaluated = cells_of(html, "stops", 2)
    assert evaluated == [["round", "0"], ["solved", "4"], ["timeout †", "1"], ["episodes", "5"], ["loop_rate", "0.500"]]
    assert [row[0] for row in cells_of(html, "failures")] == ["run", *(folder.name for folder in folders[:3])]


def test_a_page_takes_its_episodes_from_every_phase_of_every_round(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", [make_episode(0, index) for index in range(8)], [make_episode(1, 0)])
    html = page_of(folder, max_episodes=5)
    assert data_of(html)["episodes"]["round"] == [0, 0, 1, 0, 0]
    assert data_of(html)["episodes"]["episode"] == [0, 4, 0, 0, 4]
    assert "5 of 17 episodes are in this page" in html


def test_shares_are_as_even_as_the_sizes_allow() -> None:
    assert spread([100, 3, 100], 43) == [20, 3, 20]
    assert spread([2, 2], 100) == [2, 2]
    assert spread([], 5) == []
    assert evenly(10, 3) == [0, 3, 6]


def test_long_texts_are_cut_in_the_middle_and_say_so() -> None:
    texts = ["short", "a" * 1000 + "z" * 1000, "<" * 500]
    cut = cut_to(texts, 2000)
    assert cut[0] == "short"
    assert re.fullmatch(r"a+\n\[\.\.\. [\d,]+ characters left out of this page \.\.\.\]\nz+", cut[1])
    assert sum(len(json.dumps(text).replace("<", "......")) for text in cut) <= 2000
    assert cut_to(texts, 10_000) == texts


def test_a_damaged_part_is_named_and_the_rest_is_shown(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_folder / "rounds" / "000" / "episodes.parquet").write_bytes(b"half")
    (run_folder.parent / "broken").mkdir()
    report([run_folder, run_folder.parent / "broken"], None, 500)
    captured = capsys.readouterr()
    assert "2 of 2 episodes" in captured.out
    assert "warning: " in captured.err
    assert "episodes.parquet is missing or damaged" in captured.err
    assert "broken is no run folder" in captured.err
    assert "Not everything is in these figures" in (run_folder / "report.html").read_text()


def test_where_a_page_is_written(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_run(tmp_path / "other", [make_episode(0, 0)])
    monkeypatch.chdir(tmp_path)
    report([run_folder], None, 500)
    report([tmp_path], None, 500)
    report([run_folder, other], None, 500)
    report([other], tmp_path / "new" / "page.html", 500)
    for place in ("run/report.html", "report.html", "outputs/report.html", "new/page.html"):
        assert (tmp_path / place).is_file(), place


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (lambda folder: [folder.parent / "nothing"], "there is no run to report on"),
        (lambda folder: [folder, "--output", folder / "manifest.json" / "x.html"], "cannot be written"),
        (lambda folder: [folder, "--episodes", "many"], "'many' is not a number of episodes"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(
    arguments: Callable[[Path], list[Any]],
    sentence: str,
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["dagger-report", *map(str, arguments(run_folder))])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys, dagger_exp.cli.report; print({'torch', 'scipy', 'hydra', 'pyarrow', 'jinja2'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
