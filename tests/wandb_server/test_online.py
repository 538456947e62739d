"""W&B online: the real client and the project's commands against a server on the loopback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dagger_exp.analysis.workspace import PLOTS
from tests.wandb_server.backend import ENTITY, Run
from tests.wandb_server.server import KEY, Server

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
PROJECT = f"{ENTITY}/dagger_exp"
SMALL = ("debug=default", "rounds.labels=20", "rounds.steps=[11,10]", "evaluation.tasks=2", "env.num_bugs=1")
ONLINE = (*SMALL, "logger=wandb", "logger.group=small", "logger.tags=[tiny,test]")
ELSEWHERE = (*ONLINE, "logger.project=elsewhere")  # is not compared
FEW = (*ELSEWHERE, "rounds.num_rounds=1", "rounds.steps=11")
PATIENCE = {"WANDB_FINISH_TIMEOUT": "3", "WANDB_HTTP_TIMEOUT": "5"}
pytestmark = pytest.mark.timeout(1800)  # fixtures that train count too


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
    assert not server.backend.unknown, "the client asks for something new"


@pytest.fixture(scope="module")
def environment(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of a person who is logged in at the server, and nothing else of W&B."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    home = str(tmp_path_factory.mktemp("home"))
    places = {f"WANDB_{name}_DIR": home for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return others | places | {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY, "HOME": home, "PATH": path}


def run(environment: dict[str, str], place: Path, command: str, *arguments: str | Path) -> str:
    """Run a command as a person does, and return what it prints."""
    call = [str(BIN / command), *map(str, arguments)]
    done = subprocess.run(call, cwd=place, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was logged online, undisturbed."""
    folder = tmp_path_factory.mktemp("online") / "trained"
    run(environment, folder.parent, "dagger-train", *ONLINE, f"hydra.run.dir={folder}")
    return folder


def run_of(server: Server, folder: Path) -> Run:
    """Return the one run at the server of a run folder."""
    (found,) = [run for run in server.backend.runs.values() if run.about["displayName"] == folder.name]
    assert found.name == json.loads((folder / "manifest.json").read_text())["run_id"]
    return found


def check_rows(found: Run, folder: Path) -> None:
    """Every round's row is there once, in order, with the figures on disk; so is every tenth step."""
    steps = [row["_step"] for row in found.history]
    assert steps == sorted(set(steps))
    rows = [row for row in found.history if "round/num_steps" in row]
    on_disk = json.loads((folder / "summary.json").read_text())["rounds"]
    assert [{key: row[key] for key in kept} for row, kept in zip(rows, on_disk, strict=True)] == on_disk
    assert [row["trainer/global_step"] for row in found.history if "train/loss" in row] == [10, 20]
    assert [row["round"] for row in found.history if "rollout/samples" in row] == [0, 1]
    assert found.summary["eval/success_rate"] == on_disk[-1]["eval/success_rate"]
    assert found.exit_code == 0


@pytest.mark.slow
def test_a_run_is_at_the_server_with_all_that_was_logged(server: Server, trained: Path) -> None:
    found = run_of(server, trained)
    check_rows(found, trained)
    assert (found.about["groupName"], found.about["jobType"]) == ("small", "train")
    assert found.about["tags"] == ["tiny", "test"]
    assert found.config["rounds"]["value"]["steps"] == [11, 10]
    assert found.config["overrides"]["value"]["env.num_bugs"] == "1"
    metrics = found.config["_wandb"]["value"]["m"]
    axes = {about["2"]: metrics[about["5"] - 1]["1"] for about in metrics if "2" in about}
    of_rounds = {f"{prefix}/*": "round" for prefix in ("round", "rollout", "eval")}
    assert axes.items() >= (of_rounds | {"train/*": "trainer/global_step"}).items()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [("rounds", "001/episodes.parquet"), ("student", "model.safetensors")])
def test_the_store_and_the_student_are_artifacts(server: Server, trained: Path, name: str, file: str) -> None:
    found = [one for one in server.backend.artifacts if one.about["artifactTypeName"] == name]
    (artifact,) = [one for one in found if one.about["runName"] == run_of(server, trained).name]
    assert artifact.state == "COMMITTED"
    on_disk = {str(path.relative_to(trained / name)): path for path in (trained / name).rglob("*") if path.is_file()}
    listed = json.loads(server.backend.storage[artifact.manifest])["contents"]
    assert file in listed
    assert listed.keys() == on_disk.keys()
    for path, here in on_disk.items():
        assert server.backend.storage[artifact.place(path)] == here.read_bytes()


def begun(environment: dict[str, str], place: str, *arguments: str) -> subprocess.Popen[str]:
    """Start dagger-train, and return when it says that it is somewhere."""
    call = [str(BIN / "dagger-train"), *arguments]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=environment | {"PYTHONUNBUFFERED": "1"})
    said = ""
    while not re.search(place, said):
        said += (line := process.stdout.readline() if process.stdout else "")
        assert line, said
    return process


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_is_one_run_with_every_row(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    with begun(environment, "round 2/2 +train", *ELSEWHERE, f"hydra.run.dir={folder}") as process:
        process.kill()  # W&B sends every 15 s: it may not have sent the first row
    run(environment, tmp_path, "dagger-train", f"resume={folder}")
    rows = [row for row in run_of(server, folder).history if "round/num_steps" in row]
    assert [row["round"] for row in rows] == [0, 1]


@pytest.fixture(scope="module")
def synced(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that was logged offline in two parts, and uploaded later."""
    folder = tmp_path_factory.mktemp("offline") / "synced"
    offline = (*SMALL, "schedule=exponential", "logger=wandb_offline", "logger.group=small")
    with begun(environment, "round 2/2 +train", *offline, f"hydra.run.dir={folder}") as process:
        process.terminate()
    run(environment, folder.parent, "dagger-train", f"resume={folder}")
    run(environment, folder.parent, "wandb", "sync", *sorted((folder / "wandb").glob("offline-run-*")))
    return folder


@pytest.mark.slow
def test_an_offline_run_of_two_parts_is_uploaded_as_one(server: Server, synced: Path) -> None:
    check_rows(run_of(server, synced), synced)


def table(said: str, title: str) -> str:
    """Return a table of what dagger-compare prints."""
    return said.partition(title)[2].partition("\n\n")[0]


@pytest.mark.slow
@pytest.mark.parametrize("address", [PROJECT, f"{PROJECT}/small"])
def test_runs_at_the_server_compare_as_their_folders_do(
    environment: dict[str, str], trained: Path, synced: Path, tmp_path: Path, address: str
) -> None:
    here = run(environment, tmp_path, "dagger-compare", trained, synced)
    there = run(environment, tmp_path, "dagger-compare", f"wandb:{address}")
    assert "schedule=exponential" in table(here, "means over runs")
    for title in ("means over runs", "each run"):
        assert table(there, title) == table(here, title)


@pytest.mark.slow
def test_a_workspace_is_saved_with_its_panels_and_grouping(
    server: Server, environment: dict[str, str], trained: Path, synced: Path, tmp_path: Path
) -> None:
    pytest.importorskip("wandb_workspaces")
    said = run(environment, tmp_path, "dagger-compare", trained, synced, "--wandb", PROJECT)
    (view,) = server.backend.views
    assert f"on W&B: {server.address}/{PROJECT}?nw={view['name'].removeprefix('nw-').removesuffix('-v')}\n" in said
    section = json.loads(view["spec"])["section"]
    (panels,) = [bank["panels"] for bank in section["panelBankConfig"]["sections"] if bank["panels"]]
    assert {panel["config"]["chartTitle"]: panel["config"]["metrics"] for panel in panels} == PLOTS
    assert {panel["config"]["xAxis"] for panel in panels} == {"round"}
    assert section["runSets"][0]["grouping"] == [{"section": "config", "name": "schedule.value._target_"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "key", "sentence"),
    [(PROJECT, "0" * 40, "invalid API key"), (f"{ENTITY}/nothing", KEY, "Could not find project nothing")],
)
def test_what_the_server_refuses_is_one_sentence(
    environment: dict[str, str], tmp_path: Path, address: str, key: str, sentence: str
) -> None:
    call = [str(BIN / "dagger-compare"), f"wandb:{address}"]
    done = subprocess.run(
        call, cwd=tmp_path, env=environment | {"WANDB_API_KEY": key}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*{sentence}.*\n", done.stderr)


@pytest.mark.slow
def test_a_server_that_breaks_down_costs_no_training(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "outage"
    begin = begun(environment | PATIENCE, "round 1/1 +train", *FEW, f"hydra.run.dir={folder}")
    with begin as process, server.broken():
        process.communicate()
    assert process.returncode == 0
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert (folder / "student" / "model.safetensors").exists()
    assert not run_of(server, folder).history
    run(environment, tmp_path, "wandb", "sync", "--no-skip-online", *(folder / "wandb").glob("run-*"))
    assert [row["round"] for row in run_of(server, folder).history if "round/num_steps" in row] == [0]


@pytest.mark.slow
def test_an_upload_that_always_fails_holds_no_job_of_a_sweep(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    sweep = ("-m", *FEW, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    with server.refusing("wandb_manifest.json"):
        said = run(environment | PATIENCE, tmp_path, "dagger-train", *sweep)
    assert "2 of 2 jobs are finished" in said
    sentence = r"warning: W&B did not get all of this run: .* with: (wandb sync --no-skip-online (\S+)/wandb/run-\S+)\n"
    for command, folder in re.findall(sentence, said):
        run(environment, tmp_path, *command.split())
        assert [row["round"] for row in run_of(server, Path(folder)).history if "round/num_steps" in row] == [0]
    assert len(re.findall(sentence, said)) == 2
    assert "Traceback" not in said


@pytest.mark.slow
def test_an_agent_runs_a_job_of_a_sweep(server: Server, environment: dict[str, str], tmp_path: Path) -> None:
    sweep = yaml.safe_load((ROOT / "slurm" / "wandb_sweep.yaml").read_text())
    sweep["command"][1:1] = [*SMALL, "rounds.num_rounds=1", "rounds.steps=11"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    said = run(environment, tmp_path, "wandb", "sweep", "--project", "sweeps", "sweep.yaml")
    address = re.search(r"wandb agent (\S+)", said)
    assert address is not None, said
    run(environment, tmp_path, "wandb", "agent", "--count", "1", address[1])
    (found,) = [run for run in server.backend.runs.values() if run.project == "sweeps"]
    assert (found.about["sweep"], found.exit_code) == (address[1].rpartition("/")[2], 0)
    typed = found.config["overrides"]["value"]
    assert (typed["schedule"], typed["seed"]) == ("exponential", "0")
    assert [row["round"] for row in found.history if "round/num_steps" in row] == [0]
