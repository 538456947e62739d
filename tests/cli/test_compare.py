"""`dagger-compare` on run folders: its tables, its files, and what it says of runs that it cannot use."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.store.compaction import compact
from dagger_exp.store.files import write_json
from dagger_exp.store.schema import to_table
from dagger_exp.types import SCHEMA_VERSION, Episode, StopReason

NUM_TASKS = 20


def write_run(
    folder: Path, schedule: str, seed: int, num_solved: int, *, state: str = "finished", bugs: int = 3
) -> Path:
    """Write what a run of two rounds leaves, its last evaluation included."""
    rows = [row(0, 2), row(1, num_solved)]
    config: dict[str, Any] = {"name": "dagger", "seed": seed, "env": {"num_bugs": bugs}}
    config["schedule"] = {"_target_": f"dagger_exp.schedules.{schedule}", "start": 1.0}
    write_json(folder / "manifest.json", {"schema_version": SCHEMA_VERSION, "config": config})
    write_json(folder / "status.json", {"state": state, "error": ""})
    write_json(folder / "summary.json", rows[-1] | {"rounds": rows})
    reasons = [StopReason.SOLVED] * num_solved + [StopReason.MAX_TURNS] * (NUM_TASKS - num_solved)
    episodes = [Episode(1, index, f"task-{index:02d}", reason, ()) for index, reason in enumerate(reasons)]
    compact(folder / "eval" / "round_001.parquet", (to_table(folder.name, [episode]) for episode in episodes))
    return folder


def row(index: int, num_solved: int) -> dict[str, float]:
    phases = {"collect_s": 1.0, "train_s": 2.0, "evaluate_s": 3.0}
    splits: dict[str, dict[str, float]] = {
        "rollout": {"num_labels": 100, "num_teacher_queries": 90, "student_turn_rate": index / 2},
        "round": {"beta": 1 - index / 2, "loss": 0.5, "num_tokens": 1000} | phases,
        "eval": {"success_rate": num_solved / NUM_TASKS, "success_low": 0.0, "success_high": 1.0},
    }
    splits["eval"] |= {"num_tasks": NUM_TASKS, "num_failed": 0}
    metrics = {f"{split}/{name}": value for split, part in splits.items() for name, value in part.items()}
    return metrics | {"round": index}


def words(text: str) -> str:
    """Return a text as one line, however it was laid out."""
    return " ".join(text.split())


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Give a sweep of two schedules and two seeds."""
    folder = tmp_path / "sweep"
    for seed in (0, 1):
        write_run(folder / f"exponential_{seed}", "Exponential", seed, 16 + seed)
        write_run(folder / f"linear_{seed}", "Linear", seed, 8 + seed)
    return folder


def test_a_sweep_is_compared_into_its_own_folder(call: Callable, sweep: Path) -> None:
    answer = call("compare", str(sweep))
    assert (answer.code, answer.err) == (0, "")
    # The rates are 0.8 and 0.85; t with one degree of freedom is 12.706, the standard error 0.025.
    assert "schedule=exponential 0.825 0.507-1.000 2 200 180 2,000 12" in words(answer.out)
    assert "schedule=linear -0.400 ±0.000 -" in words(answer.out)
    assert "note: Fewer than 5 seeds in 2 of 2 groups" in answer.out
    assert max(map(len, answer.out.splitlines()[:-1])) <= 100  # the last one is a path
    written = {path.name for path in (sweep / "comparison").iterdir()}
    plots = {f"{name}.{form}" for name in ("success", "mixture", "loss") for form in ("png", "svg")}
    assert written == {"compare.csv"} | plots
    assert "schedule=linear" in (sweep / "comparison/success.svg").read_text()


def test_the_table_has_a_row_per_group_and_round_with_all_axes(call: Callable, sweep: Path) -> None:
    call("compare", str(sweep), "--axis", "labels")
    with (sweep / "comparison/compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["round"]) for row in rows] == [
        (group, index) for group in ("schedule=exponential", "schedule=linear") for index in ("0", "1")
    ]
    last = rows[-1]
    assert [float(last[axis]) for axis in ("labels", "teacher_queries", "tokens", "seconds")] == [200, 180, 2000, 12]
    assert (last["num_runs"], float(last["success_rate"]), float(last["beta"])) == ("2", pytest.approx(0.425), 0.5)


def test_a_comparison_may_be_written_again_and_another_folder_may_not(call: Callable, sweep: Path) -> None:
    assert call("compare", str(sweep)).code == 0
    assert call("compare", str(sweep)).code == 0
    (sweep / "mine").mkdir()
    (sweep / "mine/notes.txt").write_text("mine")
    answer = call("compare", str(sweep), "--output", str(sweep / "mine"))
    assert answer.code == 2
    assert "holds something that is no comparison" in answer.err
    assert [path.name for path in (sweep / "mine").iterdir()] == ["notes.txt"]


def test_runs_go_to_a_folder_of_their_own(call: Callable, sweep: Path, tmp_path: Path) -> None:
    call("compare", str(sweep / "linear_0"), str(sweep / "linear_1"))
    assert len(list(tmp_path.glob("outputs/comparisons/*/compare.csv"))) == 1


def test_the_baseline_is_the_group_that_is_named(call: Callable, sweep: Path) -> None:
    assert "less schedule=linear" in call("compare", str(sweep), "--baseline", "schedule=linear").out
    answer = call("compare", str(sweep), "--baseline", "linear")
    assert answer.code == 2
    assert '"schedule=exponential", "schedule=linear"' in answer.err


def test_single_runs_have_the_p_value_of_mcnemar(call: Callable, sweep: Path) -> None:
    out = call("compare", str(sweep / "linear_0"), str(sweep / "exponential_0")).out
    assert "+0.400 - +0.200 to +0.600 0.008 0.008 1 20" in words(out)  # eight pairs, all the same way: 2 / 2 ** 8


def test_other_environments_stand_in_a_table_of_their_own(call: Callable, sweep: Path) -> None:
    write_run(sweep / "more_bugs", "Linear", 0, 3, bugs=5)
    answer = call("compare", str(sweep))
    assert "Not compared with each other" in answer.out
    assert "env.num_bugs=3; env.num_bugs=5" in words(answer.out)
    assert (sweep / "comparison/success_2.png").exists()
    shutil.rmtree(sweep / "more_bugs")
    call("compare", str(sweep))
    assert not (sweep / "comparison/success_2.png").exists()  # nothing stale stays


def test_broken_and_running_runs_are_named_and_the_others_go_on(call: Callable, sweep: Path) -> None:
    write_run(sweep / "running", "Linear", 2, 5, state="running")
    summary = sweep / "linear_1/summary.json"
    summary.write_text(summary.read_text()[:100])
    write_json(sweep / "old/manifest.json", {"schema_version": 0, "config": {}})
    write_json(sweep / "bare/manifest.json", {"schema_version": SCHEMA_VERSION})
    (sweep / "exponential_1/eval/round_001.parquet").write_bytes(b"half")
    answer = call("compare", str(sweep))
    assert answer.code == 0
    warnings = answer.err.splitlines()
    assert len(warnings) == 5
    assert all(line.startswith("warning: ") for line in warnings)
    for what in (
        "linear_1/summary.json is damaged",
        "schema version 0",
        "without a config",
        "running is still running",
    ):
        assert what in answer.err
    assert "exponential_1/eval/round_001.parquet is missing, damaged" in answer.err
    assert "1 of 2" in answer.out


def test_a_sweep_that_has_only_begun_is_shown_as_far_as_it_is(call: Callable, tmp_path: Path) -> None:
    write_run(tmp_path / "sweep/one", "Linear", 0, 5, state="running")
    write_json(tmp_path / "sweep/two/manifest.json", {"schema_version": SCHEMA_VERSION, "config": {"seed": 1}})
    answer = call("compare", str(tmp_path / "sweep"))
    assert answer.code == 0
    assert "0 of 1" in answer.out


@pytest.mark.parametrize("path", ["nothing", "empty", "file"])
def test_where_no_run_is_that_is_said_in_one_sentence(call: Callable, tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    answer = call("compare", path)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith(f"error: no runs in {path}: ")
    assert not (tmp_path / "outputs").exists()


def test_the_same_run_by_two_paths_counts_once(call: Callable, sweep: Path) -> None:
    answer = call("compare", str(sweep), str(sweep / "linear_0"))
    assert answer.err == ""


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import atexit, sys; from dagger_exp.cli.compare import main\n"
        "heavy = {'torch', 'scipy', 'hydra', 'wandb', 'matplotlib'}\n"
        "atexit.register(lambda: print(heavy & set(sys.modules)))\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], check=True, capture_output=True, text=True)
    assert "dagger-compare outputs/sweeps/beta" in done.stdout
    assert done.stdout.endswith("set()\n")
