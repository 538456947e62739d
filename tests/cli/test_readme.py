"""Every command of the README and of docs/ in a block of `bash` runs; a block of `sh` needs more than this machine.

Long commands are shortened by overrides, and nothing else about them is changed. Commands of the package are called in
this process, which has loaded what they need; all others are typed into a shell.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.commands import Call

ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv" / "bin"
SHORT = {
    "methods.py": "--seeds 1 --methods sft --workers 1",
    "kills.py": "--kills 1 --engine scripted",
    "prefix_trees.py": "--turns 8 --repeats 1",
    "bench_store.py": "--turns 20000",
    "baselines_textworld.py": "--help",
    "bench_compare.py": "",
    "bench_report.py": "",
    "bench_labels.py": "--rates 0.01 --concurrency 4 --rounds 1",
    "bench_startup.py": "--repeats 1",
    "bench_pypi_bugs.py": "--help",
    "bench_sandboxes.py": "",
    "bench_collect.py": "--clients bare tokens teacher --concurrency 4 --turns 2 --latency 0.05 --repeats 1",
}

FEW_JOBS = "seed=0 schedule=exponential,linear rounds.num_rounds=1 rounds.labels=20 rounds.steps=4"


def commands() -> list[str]:
    """Return each command once, however many pages show it."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    blocks = [block for page in pages for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL)]
    return list(dict.fromkeys(line for block in blocks for line in block.splitlines() if line.strip()))


def shortened(command: str, out: Path, run_folder: Path) -> str:
    """Return the command with fewer rounds, its output under `out`, and the places of a run and a sweep filled in."""
    command = command.replace("outputs/runs/FOLDER", str(run_folder))
    command = command.replace("outputs/sweeps/beta", str(run_folder.with_name("beta")))
    if "sweep=beta" in command:
        command += f" {FEW_JOBS}"
    few = f"paths.output_folder={out} paths.cache_folder={out}/cache"
    if command.startswith("dagger-evaluate"):  # which takes env and lengths from the run
        few += " evaluation.tasks=2"
    elif "dry_run=true" not in command:
        few += " debug=default"
    if command.startswith("make train"):
        given = " ".join(word.removeprefix("ARGS=") for word in shlex.split(command)[2:])
        return f'make train ARGS="{given} {few} logger=wandb_offline"'  # the default, which debug leaves out
    if command in ("make test", "make lint"):
        return command.replace("make", "make --dry-run")  # .ci/run does them
    if command.startswith("python tests/benchmarks/"):
        program = command.split()[1].rpartition("/")[2]
        head, _, overrides = command.partition(" -- ")
        tail = f" -- {overrides} {few}" if program == "methods.py" else ""
        return f"cd {out} && {BIN}/python {ROOT}/{head.removeprefix('python ')} {SHORT[program]}{tail}"
    if command.startswith(("dagger-train", "dagger-evaluate", "dagger-collect")) and not re.search(
        "resume=|--help|--cfg", command
    ):
        return f"{BIN}/{command} {few}"
    return f"{BIN}/{command}" if command.startswith("dagger-") else command


def run(command: str) -> None:
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "finished"
    run(f"{BIN}/dagger-train debug=default hydra.run.dir={folder}")
    run(f"{BIN}/dagger-train sweep=beta {FEW_JOBS} debug=default hydra.sweep.dir={folder.with_name('beta')}")
    return folder


@pytest.mark.readme
@pytest.mark.parametrize("command", commands())
def test_command_runs(command: str, tmp_path: Path, finished_run: Path, call: Call) -> None:
    short = shortened(command, tmp_path, finished_run)
    program, *arguments = shlex.split(short)
    if program.startswith(f"{BIN}/dagger-") and "launcher=local_parallel" not in arguments:
        answer = call(Path(program).name.removeprefix("dagger-"), *arguments)
        assert answer.code == 0, f"{short}\n{answer.out[-2000:]}\n{answer.err[-2000:]}"
    else:
        run(short)
