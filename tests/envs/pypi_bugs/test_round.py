"""The whole loop on real code, as it is typed: a round of DAgger with a tiny student of bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dagger_exp.store.store import Store
from dagger_exp.types import Actor, StopReason
from tests.envs.pypi_bugs.conftest import PACKAGES, MakeWorld

pytestmark = pytest.mark.timeout(1800)
DAGGER_TRAIN = Path(sys.executable).parent / "dagger-train"


@pytest.mark.parametrize(
    "sandbox", [pytest.param(kind, marks=getattr(pytest.mark, kind)) for kind in ("bubblewrap", "docker")]
)
def test_a_round_of_dagger_on_real_code(
    sandbox: str, make_world: MakeWorld, cache_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    world = make_world()
    sizes = {split: len(world.tasks(split)) for split in ("train", "heldout")}
    image = [f"sandbox.image={request.getfixturevalue('docker')}"] if sandbox == "docker" else []
    values = [
        f"sandbox={sandbox}",
        *image,
        f"paths.cache_folder={cache_folder.parent}",
        f"env.packages=[{','.join(PACKAGES)}]",
        *(f"env.num_{split}_tasks={size}" for split, size in sizes.items()),
        "rounds.num_rounds=2",
        "rounds.labels=[10,4]",
        "rounds.steps=2",
        "rollout.concurrency=2",
        "rollout.max_new_tokens=24",
        "evaluation.tasks=1",
        "env.num_validation_tasks=0",
        "evaluation.validation_tasks=0",
        "logger=csv",
        "hydra.run.dir=run",
    ]
    command = [str(DAGGER_TRAIN), "experiment=pypi_bugs", *values]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["state"] == "finished"
    store = Store.open(tmp_path / "run" / "rounds")
    episodes = store.read(0).episodes(range(len(store.read(0))))
    assert {episode.stop_reason for episode in episodes} == {StopReason.SOLVED}  # the teacher acts alone at first
    turns = [turn for episode in episodes for turn in episode.turns]
    assert {turn.actor for turn in turns} == {Actor.TEACHER}
    assert all(turn.label_ids for turn in turns)
    assert any("sed -i" in (turn.label_text or "") for turn in turns)
    later = store.committed(1).values()
    assert later
    assert not any(summary.stop_reason.is_infrastructure for summary in later)


@pytest.mark.bubblewrap
def test_without_a_sandbox_there_is_one_sentence(tmp_path: Path) -> None:
    command = [str(DAGGER_TRAIN), "env=pypi_bugs"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("env=pypi_bugs runs commands: choose scaffold=bash and sandbox=bubblewrap.")
