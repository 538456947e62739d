"""A mistake of the user: one sentence on stderr, exit code 2, no traceback, and nothing half written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dagger_exp.cli.jobs import set_state, sign, started_at
from dagger_exp.cli.run import told
from dagger_exp.cli.train import remove_asides
from dagger_exp.config.mistakes import CONF_FOLDER
from dagger_exp.envs.repo_repair import RepoRepair, RepoRepairEnv
from dagger_exp.errors import ConfigError, EnvError
from dagger_exp.types import SCHEMA_VERSION, Task

SCRIPTS = Path(sys.executable).parent
QUICK = ("debug=default", "rounds.num_rounds=1", "rounds.labels=40", "rounds.steps=2", "evaluation.tasks=2")
Call = Callable[..., Any]


def files_in(folder: Path) -> list[str]:
    """Return every file below a folder."""
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--foo"], "unrecognized arguments: --foo; overrides are KEY=VALUE without dashes, see --help."),
        (["--cfg"], "argument --cfg/-c: expected one argument; overrides are KEY=VALUE without dashes, see --help."),
        (["rounds.num_round=3"], "rounds.num_round is unknown; did you mean rounds.num_rounds?"),
        (["+seed=4"], "seed exists already; write seed=VALUE without the +."),
        (["methd=sft"], "methd is unknown; did you mean method?"),
        (["-m", "seed=0,1", "schedule=lnear"], "schedule=lnear does not exist; did you mean schedule=linear? "),
        (["-m", "seed=0,a"], "seed is 'a'; it must be a whole number."),
        (["--cfg", "job", "seed=a"], "seed is 'a'; it must be a whole number."),
        (["resume=/nowhere"], "resume=/nowhere is not a run folder: it has no .hydra/config.yaml."),
        (["resume=/nowhere", "seed=3"], "resume=FOLDER takes every choice from that run; remove the other arguments."),
        (["optimizer.lr=fast"], "optimizer.lr is 'fast'; it must be a number."),
        (["demonstrations=messages", "demonstrations.files=[]"], "demonstrations.files is empty; name a file, as in "),
        (["schedule.start=2"], "schedule.start is 2; a probability lies in [0, 1]."),
        (
            ["schedule=constant", "schedule.end=0"],
            "schedule=constant has one beta: set schedule.start alone, or choose ",
        ),
        (["filter.keep=x"], "filter.keep is 'x'; choose one of all, finished, solved, warmup_solved."),
        (["method=dagger_switch", "mixing.t_max.start=-1"], "a ramp needs 0 <= start <= cap."),
        (["student.init=/nowhere"], "student.init is /nowhere, which is not there; give a run or "),
        (["student.hidden_size=0"], "student.hidden_size is 0; it must be at least 1."),
        (["trainer.devices=0"], "Trainer refuses its values: "),
        (["teacher=openai", "teacher.model=x"], "error: the key for https://api.openai.com is missing: set the "),
        (["env.num_bugs=9"], "env.num_bugs and env.num_files: 1 <= num_bugs <= num_files, 2 <= num_files <= 8."),
        (["paths.output_folder=file/below"], "file/below/runs/"),
    ],
)
def test_a_mistake_leaves_no_run_folder(call: Call, tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    answer = call("train", *arguments)
    assert answer.code == 2
    said = answer.err.strip().splitlines()
    assert len(said) == 1, answer.err
    assert said[0].startswith(f"error: {sentence}") or sentence in said[0]
    assert files_in(tmp_path) == ["file"]


def test_the_console_script_says_so_without_loading_torch(tmp_path: Path) -> None:
    command = [str(SCRIPTS / "dagger-train"), "rounds.num_round=3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 2
    assert done.stdout == "dagger-train: loading\n"
    assert done.stderr == "error: rounds.num_round is unknown; did you mean rounds.num_rounds?\n"
    assert files_in(tmp_path) == []


def test_a_mistake_in_the_users_own_config_names_the_file(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(CONF_FOLDER, tmp_path / "conf")
    with (tmp_path / "conf" / "train.yaml").open("a") as config:
        config.write("\nwindw: 3\n")
    for reader in ("cli.arguments", "config.composing", "config.mistakes"):
        monkeypatch.setattr(f"dagger_exp.{reader}.CONF_FOLDER", str(tmp_path / "conf"))
    answer = call("train")
    assert answer.code == 2
    assert answer.err == "error: conf/train.yaml: windw is unknown; see dagger-train --help.\n"


def test_what_is_untrained_is_not_evaluated(call: Call, tmp_path: Path) -> None:
    answer = call("evaluate")
    assert answer.code == 2
    assert answer.err == ("error: dagger-evaluate needs a student; name one, as in student.init=outputs/runs/FOLDER.\n")
    assert files_in(tmp_path) == []


def test_a_machine_without_git_knows_no_commit(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call("collect", *QUICK, "rounds.labels=5", f"hydra.run.dir={tmp_path}/run").code == 0
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["commit"] == ""


def test_a_world_without_its_extra_names_the_extra(tmp_path: Path) -> None:
    blocked = (
        "import importlib.metadata as m, sys\n"
        "sys.modules['textworld'] = None\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'textworld': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from dagger_exp.cli.train import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", blocked, "env=textworld", "debug=default"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.stderr == "error: TextWorld games need `pip install dagger-exp[textworld]`.\n"
    assert done.returncode == 2
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["labeler.turns=teacher", "schedule=constant", "schedule.start=0"],
            "hold no label that is trained on; choose ano",
        ),
        (
            ["mixing=student", "schedule=none", "filter.keep=solved"],
            "hold no label that is trained on; choose another lab",
        ),
        (["student.max_context_tokens=9"], "error: 100 episodes, 100 of them ended as context, hold no label that is "),
        (["student.max_context_tokens=9"], "trained on; raise student.max_context_tokens or lower rollout.max_new_t"),
    ],
)
def test_a_round_that_can_never_be_full_is_given_up(call: Call, arguments: list[str], sentence: str) -> None:
    answer = call("train", *QUICK, "env.num_bugs=1", "env.max_turns=3", "rollout.concurrency=100", *arguments)
    assert answer.code == 2
    assert sentence in answer.err
    assert "Traceback" not in answer.err


def test_a_resume_takes_no_other_kind_of_run_and_no_damaged_one(call: Call, tmp_path: Path) -> None:
    folder = f"hydra.run.dir={tmp_path}/collected"
    assert call("collect", *QUICK, folder, "rounds.labels=5", "env.num_bugs=1").code == 0
    other = call("train", f"resume={tmp_path}/collected")
    assert other.err.startswith(f"error: resume={tmp_path}/collected is a run of dagger-collect; go on with: ")
    assert "nothing to do" in call("collect", f"resume={tmp_path}/collected").out
    (tmp_path / "collected" / ".hydra" / "config.yaml").write_text("")
    assert "config.yaml is empty; restore it" in call("collect", f"resume={tmp_path}/collected").err
    (tmp_path / "collected" / ".hydra" / "config.yaml").write_text("rounds: {num_rounds: 0")
    assert "cannot be read; restore it" in call("collect", f"resume={tmp_path}/collected").err


def test_what_a_kill_ended_before_it_began_is_started_once_more(call: Call, tmp_path: Path) -> None:
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text("")
    answer = call("collect", f"resume={tmp_path}/run")
    assert answer.code == 2
    assert answer.err == (
        f"error: resume={tmp_path}/run was ended before it began, and there is nothing to go on with: give the command "
        f"that started it once more, with hydra.run.dir={tmp_path}/run\n"
    )
    typed = (*QUICK, f"hydra.run.dir={tmp_path}/run", "rounds.labels=5", "env.num_bugs=1")
    assert call("collect", *typed).code == 0


class Outage(RepoRepair):
    """A world whose first held-out task cannot be made while a file says so."""

    def make(self, task: Task) -> RepoRepairEnv:
        if task.id == "heldout-000000" and Path("outage").exists():
            raise EnvError("no such image")
        return super().make(task)


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_last_evaluation_without_a_rate_fails_its_run_until_a_resume(
    call: Call, tmp_path: Path, command: str
) -> None:
    typed = [*QUICK, f"hydra.run.dir={tmp_path}/run", f"env._target_={__name__}.Outage"]
    if command == "evaluate":
        assert call("train", *typed[:-2], f"hydra.run.dir={tmp_path}/trained").code == 0
        typed = [f"student.init={tmp_path}/trained", *typed[-2:]]
    (tmp_path / "outage").write_text("")
    answer = call(command, *typed)
    assert answer.code == 2
    assert "error: 1 of 2 eval episodes failed for reasons of infrastructure, so that there is no" in answer.err
    said = call("compare", str(tmp_path / "run")).err
    assert command == "evaluate" or "run is failed (1 of 2 eval episodes failed" in said, said
    assert command == "evaluate" or "only they are played again) and is left out of the final figures" in said
    (tmp_path / "outage").unlink()
    assert call(command, f"resume={tmp_path}/run").code == 0
    found = json.loads((tmp_path / "run" / ("summary.json" if command == "train" else "evaluation.json")).read_text())
    assert found["eval/num_failed"] == 0
    assert "eval/success_rate" in found


def test_a_world_without_validation_tasks_is_refused_before_anything_is_played(call: Call, tmp_path: Path) -> None:
    answer = call("train", *QUICK, "+env.num_validation_tasks=0", f"hydra.run.dir={tmp_path}/run")
    assert answer.code == 2
    assert answer.err == (
        "error: the env's validation split is empty: set evaluation.validation_tasks=0, or let its tasks(split) return "
        "some.\n"
    )
    assert not (tmp_path / "run").exists()


ANEW = "its run, started again, trains anew on the rounds that it has."


@pytest.mark.parametrize(
    "typed",
    [
        "teacher.endpoint.address=https://me:sk-planted@host",
        "teacher.endpoint.address=https://sk-planted@host",
        "teacher.endpoint.api_key_env=sk-planted",
        "+teacher.request.api_key=sk-planted",
        "engine.server.arguments=[--api-key,sk-planted]",
        "engine.server.arguments=['--api-key=sk-planted']",
        "+engine.server.environment.VLLM_API_KEY=sk-planted",
        "+engine.server.environment.HF_TOKEN=sk-planted",
    ],
)
def test_a_key_that_is_typed_where_none_belongs_is_shown_nowhere(call: Call, tmp_path: Path, typed: str) -> None:
    answer = call("train", "teacher=openai", "teacher.model=x", "engine=vllm", typed)
    assert answer.code == 2
    assert answer.err.startswith(f"error: {typed.removeprefix('+').rpartition('.')[0]}")
    assert "planted" not in answer.out + answer.err
    assert files_in(tmp_path) == []


def test_a_run_that_another_process_is_at_is_left_to_it(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "collected"
    assert call("collect", *QUICK, f"hydra.run.dir={folder}", "rounds.labels=5", "env.num_bugs=1").code == 0
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True) as other:
        set_state(folder, "running", **{**sign(), "pid": other.pid, "started": started_at(psutil.Process(other.pid))})
        before = (folder / "status.json").read_text()
        answer = call("collect", f"resume={folder}")
        assert answer.code == 2
        sentence = f"error: {folder} is of a run that process {other.pid} is at: wait for it, or end it with: kill "
        assert answer.err == f"{sentence}{other.pid}\n"
        assert (folder / "status.json").read_text() == before
        config = (folder / ".hydra" / "config.yaml").read_text()
        again = call("collect", *QUICK, f"hydra.run.dir={folder}", "rounds.labels=5", "env.num_bugs=1", "seed=9")
        assert (again.code, again.err) == (2, answer.err)
        assert (folder / ".hydra" / "config.yaml").read_text() == config, "the run goes on with its own choices"
        other.communicate("\n")
    assert call("collect", f"resume={folder}").code == 0


def test_weights_that_are_no_numbers_end_a_run_and_are_not_kept(call: Call, tmp_path: Path) -> None:
    folder, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    quick = ("rounds.labels=5", "rounds.steps=3", "env.num_bugs=1", f"hydra.run.dir={folder}")
    answer = call("train", *QUICK, *quick, "optimizer.lr=1e30", "callbacks.checkpoint_steps=1")
    assert "at step 2 the student has weights that are no numbers, which no checkpoint keeps: start" in answer.err
    weights = torch.load(checkpoint, weights_only=False)["state_dict"].values()
    assert all(bool(weight.isfinite().all()) for weight in weights), "that of the first step"
    whole = checkpoint.read_bytes()
    for damage in (whole[:2000], whole[:20_000], b"", b"no checkpoint"):
        checkpoint.write_bytes(damage)
        for command in (("train", f"resume={folder}"), ("evaluate", f"student.init={checkpoint}")):
            answer = call(*command)
            assert answer.code == 2
            assert answer.err.endswith(f"error: {checkpoint} is damaged: move it away; {ANEW}\n")
    checkpoint.unlink()
    answer = call("train", f"resume={folder}")
    assert "at step 2 the student has weights that are no numbers" in answer.err, "anew from the first step"


def test_a_folder_of_another_run_is_left_as_it_is(call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    typed = (*QUICK, "rounds.labels=5", "env.num_bugs=1", f"hydra.run.dir={folder}")
    assert call("collect", *typed).code == 0
    config = (folder / ".hydra" / "config.yaml").read_text()
    answer = call("collect", *typed, "seed=9", "rollout.concurrency=3")
    mend = f"go on with: dagger-collect resume={folder}, or choose another folder.\n"
    assert answer.err == f"error: {folder} is a run with seed=0, not 9, rollout.concurrency=20, not 3: {mend}"
    assert call("evaluate", "student.init=x", f"hydra.run.dir={folder}").err == (
        f"error: {folder} is a run of dagger-collect: {mend}"
    )
    assert (folder / ".hydra" / "config.yaml").read_text() == config
    other = call("train", *typed, "rounds.steps=2", "env.max_turns=3")
    assert other.err == f"error: {folder} is a run with env.max_turns=24, not 3: {mend}", "what the episodes are of"
    assert call("train", *typed, "rounds.steps=2", "evaluation.tasks=2").code == 0, "what was collected is trained on"
    (folder / ".hydra" / "config.yaml").write_text("")  # as by a kill while it was written
    assert call("collect", *typed, "teacher_budget.tokens_per_run=1000000", "rollout.max_attempts=5").code == 0


def test_a_store_that_is_not_what_it_should_be_is_refused(call: Call, tmp_path: Path) -> None:
    assert call("collect", "store=nowhere").err.startswith("error: store=nowhere holds no rounds/; give the folder of ")
    store = tmp_path / "old" / "rounds" / "store.json"
    store.parent.mkdir(parents=True)
    store.write_text(json.dumps({"schema_version": 0, "run_id": "x"}))
    answer = call("collect", "store=old")
    assert answer.code == 2
    assert "schema" in answer.err
    store.write_text(json.dumps({"schema_version": SCHEMA_VERSION, "run_id": "someone else"}))
    answer = call("train", *QUICK, f"hydra.run.dir={tmp_path}/old")
    assert "is the store of run someone else, not of " in answer.err
    assert store.exists()


def test_an_unexpected_exception_is_shown_whole_and_written_down(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("ours")

    # A mistake of ours cannot be typed, so it is put where one could be.
    monkeypatch.setattr("dagger_exp.config.build.build_run", broken)
    answer = call("train", *QUICK, f"hydra.run.dir={tmp_path}/run")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "ZeroDivisionError: ours" in (tmp_path / "run" / "train.log").read_text()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"


FULL = """
import resource, sys
from dagger_exp.cli.train import main
import dagger_exp.config.build
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
main()
"""


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, *QUICK, f"hydra.run.dir={tmp_path}/run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "File too large" in line]) == 1, done.stderr


ON_A_FULL_DISK = """
import sys
from pathlib import Path
from dagger_exp.cli.jobs import set_state
from dagger_exp.store.files import write_json
folder = Path(sys.argv[1])
set_state(folder, "running", host="here", pid=1)
try:
    while True:
        with (folder / "fills").open("ab") as file:
            file.write(bytes(4096))
except OSError:
    pass
set_state(folder, "failed", "no space is left " * 200, host="here", pid=1)
print((folder / "status.json").read_text())
"""


@pytest.mark.bubblewrap
def test_a_full_disk_does_not_leave_a_run_running(tmp_path: Path) -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("needs the package bubblewrap")
    small = ["bwrap", "--dev-bind", "/", "/", "--size", "65536", "--tmpfs", str(tmp_path)]
    command = [*small, sys.executable, "-c", ON_A_FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    status = json.loads(done.stdout)
    assert status["state"] == "failed", done.stderr
    assert status["error"].startswith("no space is left no space")


def test_what_a_kill_left_half_written_goes_at_the_next_start(tmp_path: Path) -> None:
    left = ["checkpoints/last.ckpt.1.tmp", "student/chat_options.json.2.tmp", "student/base/x.tmp", "metrics.csv.3.tmp"]
    kept = ["checkpoints/last.ckpt", "student/chat_options.json", "student_rounds/000/model.safetensors"]
    for name in [*left, *kept, "student_rounds/001.tmp/model.safetensors"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    remove_asides(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {*kept}


def test_a_mistake_takes_no_file_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def job() -> None:
        with told(folder):
            (folder / "seed1").mkdir()
            (folder / "seed1" / "notes.txt").write_text("mine")
            raise ConfigError("a mistake.")

    with pytest.raises(SystemExit):
        job()
    assert (folder / "seed1" / "notes.txt").read_text() == "mine"
