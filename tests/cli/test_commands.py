"""The commands as a person starts them: help, a run folder, what follows from it, sweeps, W&B."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dagger_exp.analysis.load import load_run
from dagger_exp.analysis.settings import settings_of
from dagger_exp.analysis.wandb_source import load_offline, offline_folders
from dagger_exp.cli.jobs import set_state
from dagger_exp.store.store import Store
from dagger_exp.types import Actor, StopReason

SCRIPTS = Path(sys.executable).parent
QUICK = ("debug=default", "rounds.labels=20", "rounds.steps=2", "evaluation.tasks=2", "env.num_bugs=1")
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run of two rounds through the console script, from a folder elsewhere: its folder, stdout and stderr."""
    place = tmp_path_factory.mktemp("elsewhere")
    command = [str(SCRIPTS / "dagger-train"), *QUICK, "logger=wandb_offline"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = (place / "outputs" / "runs").iterdir()
    return folder, done.stdout, done.stderr


@pytest.mark.parametrize("command", ["train", "evaluate", "collect"])
def test_help_is_light_and_shows_choices_and_examples(command: str, tmp_path: Path) -> None:
    call = [sys.executable, "-X", "importtime", "-m", f"dagger_exp.cli.{command}", "--help"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "transformers", "lightning", "wandb"} & imported
    assert "hydra" in imported
    assert done.stdout.startswith(f"dagger-{command}: ")
    assert "student.init=outputs/runs/FOLDER" in done.stdout or "resume=outputs/runs/FOLDER" in done.stdout
    assert "\nmixing: student, switch, switch_teacher_first, teacher, turn\n" in done.stdout
    assert f'eval "$(dagger-{command} -sc install=bash)"' in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--cfg", "job", "seed=3"], "seed: 3"),
        (["--info", "defaults"], "schedule/linear"),
        (["--shell-completion", "install=bash"], "hydra_bash_completion"),
    ],
)
def test_options_of_hydra_work_and_run_nothing(call: Call, tmp_path: Path, arguments: list[str], shown: str) -> None:
    answer = call("train", *arguments)
    assert answer.code == 0
    assert shown in answer.out
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_holds_all_of_it(run: tuple[Path, str, str]) -> None:
    folder, _, _ = run
    files = "manifest.json metrics.csv summary.json status.json train.log failures.csv".split()
    folders = [".hydra", "checkpoints", "eval", "rounds", "student", "validation", "wandb"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*files, *folders])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["seed"] == 0
    assert manifest["choices"]["logger"] == "wandb_offline"
    assert manifest["command"][:2] == ["dagger-train", "debug=default"]
    assert {"run_id", "commit", "versions", "created"} <= manifest.keys()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert [row["round"] for row in json.loads((folder / "summary.json").read_text())["rounds"]] == [0, 1]


def test_a_folder_is_named_by_the_choice_that_is_not_the_methods(call: Call, tmp_path: Path) -> None:
    few = ("rounds.num_rounds=1", "rounds.labels=5", "rounds.steps=1", "evaluation.tasks=1")
    assert call("train", *QUICK, *few, "schedule=constant", "aggregation=latest").code == 0
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert folder.name.endswith("_dagger_schedule-constant_aggregation-latest")
    shown = call("train", "--config-dir", str(tmp_path), "schedule=constant", "--cfg", "job").out
    assert shown.startswith("name: dagger_schedule-constant\n")


def test_without_a_terminal_there_are_plain_lines_only(run: tuple[Path, str, str]) -> None:
    folder, out, err = run
    lines = out.splitlines()
    assert lines[0] == "dagger-train: loading"
    assert "\x1b" not in out
    assert "\r" not in out
    assert err == ""
    for noise in ("wandb:", "GPU available", "Tip:", "Warning"):
        assert noise not in out
    assert "GPU available" in (folder / "train.log").read_text()
    assert len([line for line in lines if line.split()[:1] in (["0"], ["1"])]) == 2
    assert f"  dagger-evaluate student.init=outputs/runs/{folder.name}" in lines


def test_wandb_and_the_run_folder_say_the_same_of_a_run(run: tuple[Path, str, str]) -> None:
    on_disk = load_run(run[0])
    (logged,), _ = load_offline(offline_folders(run[0] / "wandb"))
    assert (logged.state, logged.commit, logged.choices) == ("finished", on_disk.commit, on_disk.choices)
    assert settings_of(logged.config) == settings_of(on_disk.config)
    assert all(row.items() >= kept.items() for row, kept in zip(logged.rows, on_disk.rows, strict=True))


def test_wandb_has_the_rounds_against_their_axis(run: tuple[Path, str, str]) -> None:
    folder, _, _ = run
    (log,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    command = [str(SCRIPTS / "wandb"), "leet", "inspect", "--json", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    axes = {r["metric"].get("glob_name"): r["metric"].get("step_metric") for r in records if r["type"] == "metric"}
    assert {axes[f"{split}/*"] for split in ("round", "rollout", "eval", "validation")} == {"round"}
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    rows = [item for item in history if "eval/success_rate" in item]
    assert [row["round"] for row in rows] == [0, 1]
    assert any("rollout/samples._type" in item for item in history)
    (began,) = [record["run"] for record in records if record["type"] == "run"]
    assert began["run_id"] == json.loads((folder / "manifest.json").read_text())["run_id"]
    assert began["config"]["update"]["rounds"]["num_rounds"] == 2


def test_a_student_is_evaluated_and_its_store_grows(run: tuple[Path, str, str], call: Call, tmp_path: Path) -> None:
    folder, _, _ = run
    typed = (f"student.init={folder}", "evaluation.tasks=3", f"hydra.run.dir={tmp_path}/evaluation")
    answer = call("evaluate", *typed)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("dagger-evaluate: loading")
    assert (tmp_path / "evaluation" / "failures.csv").exists()
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    stops = {name.removeprefix("eval/num_stop_"): count for name, count in found.items() if "stop" in name}
    assert stops.keys() == {reason.value for reason in StopReason}
    occurred = ", ".join(f"{count} {reason}" for reason, count in stops.items() if count)
    assert re.search(rf"stop reasons +{occurred}\n", answer.out)
    assert f"  dagger-evaluate {' '.join(typed[:2])} evaluation.temperature=1.0\n" in answer.out
    assert found["eval/num_tasks"] == 3, "what is typed wins"
    config = json.loads((tmp_path / "evaluation" / "manifest.json").read_text())["config"]
    assert (config["env"]["num_bugs"], config["rollout"]["max_new_tokens"]) == (1, 8), "the rest is the run's"
    (tmp_path / "evaluation" / "evaluation.json").unlink()
    set_state(tmp_path / "evaluation", "interrupted")
    assert call("evaluate", f"resume={tmp_path}/evaluation").code == 0
    again = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert again["eval/num_tasks"] == 3, "what was typed wins at a resume too"
    answer = call("collect", *QUICK, f"store={folder}", "rounds.num_rounds=1", f"hydra.run.dir={tmp_path}/more")
    assert answer.code == 0, answer.err
    typed = f"{' '.join(QUICK)} rounds.num_rounds=1"
    assert f"  dagger-collect {typed} store={folder}\n" in answer.out, "the next rounds are like these"
    assert json.loads((tmp_path / "more" / "manifest.json").read_text())["first_round"] == 2
    assert sorted(path.name for path in (folder / "rounds").glob("0*")) == ["000", "001", "002"]
    (episode,) = Store.open(folder / "rounds").read(2).episodes([0])
    versions = {turn.policy_version for turn in episode.turns if turn.actor is Actor.STUDENT}
    assert versions == {2}


def test_fewer_held_out_tasks_than_were_asked_for_are_said(
    run: tuple[Path, str, str], call: Call, tmp_path: Path
) -> None:
    few = ("evaluation.tasks=5", "+env.num_heldout_tasks=3")
    said = "warning: evaluation.tasks is 5, but the env has 3 held-out tasks: all of them.\n"
    answer = call("evaluate", f"student.init={run[0]}", *few, f"hydra.run.dir={tmp_path}/evaluation")
    assert answer.code == 0, answer.err
    assert said in answer.out
    answer = call("train", *QUICK, *few, "rounds.num_rounds=1", f"hydra.run.dir={tmp_path}/run")
    assert said in answer.out


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
def test_an_evaluation_refuses_a_bundle_and_a_gpu_that_is_not_there(
    run: tuple[Path, str, str], call: Call, tmp_path: Path
) -> None:
    answer = call("evaluate", f"student.init={run[0]}", "experiment=textworld")
    assert answer.code == 2
    assert answer.err.startswith("error: experiment=... sets an env and lengths, which an evaluation takes from ")
    answer = call("evaluate", f"student.init={run[0]}", "trainer=gpu")
    assert answer.err == "error: trainer.accelerator is gpu, and PyTorch finds none; choose trainer=cpu.\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "outputs"]


def test_a_store_of_a_run_that_goes_on_or_of_another_env_or_writer_takes_no_rounds(
    run: tuple[Path, str, str], call: Call, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(run[0], store)
    rounds = Store.open(store / "rounds").rounds()
    answer = call("collect", "debug=default", f"store={store}", "env=textworld")
    assert answer.code == 2
    assert "TextWorld: choose the same env." in answer.err
    lock = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    holding = [sys.executable, "-c", lock, str(store / "rounds" / "writer.lock")]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        answer = call("collect", *QUICK, f"store={store}")
        other.kill()
    assert answer.err == f"error: {store}/rounds is being written by another process: wait for its end.\n"
    set_state(store, "interrupted")
    answer = call("collect", *QUICK, f"store={store}")
    assert answer.code == 2
    assert answer.err.startswith(f"error: store={store} is of a run that is interrupted, and would take these rounds ")
    assert Store.open(store / "rounds").rounds() == rounds


def test_episodes_without_labels_can_be_collected(call: Call, tmp_path: Path) -> None:
    without = ("labeler.turns=none", "rounds.labels=null", "rounds.tasks=3", "rounds.num_rounds=1")
    assert call("collect", "debug=default", *without, f"hydra.run.dir={tmp_path}/run").code == 0
    manifest = json.loads((tmp_path / "run" / "rounds" / "000" / "manifest.json").read_text())
    assert (manifest["num_episodes"], manifest["num_labels"]) == (3, 0)
