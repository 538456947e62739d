"""Demonstrations in and out by the commands: what a run exports is another run's round 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.config.build import num_steps
from dagger_exp.config.composing import compose_checked
from dagger_exp.rollout.demonstrations.importing import Demonstrations
from dagger_exp.store.store import Store
from dagger_exp.types import Actor
from tests.provider import free_port

Call = Callable[..., Any]
QUICK = ("debug=default", "evaluation.tasks=2", "env.num_bugs=1")
PLAYED = ("rounds.labels=null", "rounds.tasks=7", "rounds.num_rounds=1")


@pytest.fixture
def demos(call: Call, tmp_path: Path) -> str:
    """Seven episodes of the world's teacher as a file of messages."""
    teacher = ("method=sft", f"hydra.run.dir={tmp_path}/teacher")
    assert call("collect", *QUICK, *PLAYED, *teacher).code == 0
    out = str(tmp_path / "demos.jsonl")
    assert call("export", f"{tmp_path}/teacher", "--only", "executed", "--out", out).code == 0
    return out


def test_sft_on_demonstrations_takes_whole_passes_over_them(call: Call, demos: str, tmp_path: Path) -> None:
    lengths = ("rounds.labels=null", "rounds.tasks=1", "rounds.steps=null", "rounds.epochs_per_round=3")
    chosen = ("method=sft", "demonstrations=messages", f"demonstrations.files={demos}")
    answer = call("train", *QUICK, *lengths, *chosen, "rounds.num_rounds=1", f"hydra.run.dir={tmp_path}/sft")
    assert answer.code == 0, answer.err
    assert "7 demonstrations" not in answer.out, "all are graded, and none is set aside"
    manifest = Store.open(tmp_path / "sft" / "rounds").manifest(0)
    assert (manifest["num_episodes"], manifest["origin"]["format"]) == (7, "messages")
    (row,) = json.loads((tmp_path / "sft" / "summary.json").read_text())["rounds"]
    assert row["round/num_steps"] == 6, "three passes over seven episodes, four in a step"
    cfg = compose_checked("train", [*QUICK, *lengths, *chosen, "rounds.num_rounds=1"])
    assert num_steps(cfg, Demonstrations(format="messages", files=demos)) == 6, "which the learning rate must know"


def test_dagger_goes_on_from_demonstrations(call: Call, demos: str, tmp_path: Path) -> None:
    with Path(demos).open("a") as file:
        file.write('{"messages": 3}\n')
    chosen = (
        "demonstrations=swe_smith",
        f"demonstrations.files=[{demos},{tmp_path}/demo*.jsonl]",
        "schedule.start=0.5",
    )
    answer = call("collect", *QUICK, *chosen, "rounds.labels=10", f"hydra.run.dir={tmp_path}/run")
    assert answer.code == 0, answer.err
    assert "1 of 8 demonstrations are set aside: 1 x a field is missing or holds something else." in answer.out
    view = Store.open(tmp_path / "run" / "rounds")
    actors = [{turn.actor for turn in view.read(r).episode(0).turns} for r in (0, 1)]
    assert actors[0] == {Actor.TEACHER}
    assert Actor.STUDENT in actors[1]
    more = call("collect", *QUICK, *chosen, f"store={tmp_path}/run", f"hydra.run.dir={tmp_path}/more")
    assert more.err == (
        "error: demonstrations make round 0, which the store has already; leave out store or demonstrations.\n"
    )


def test_a_teacher_of_later_rounds_is_looked_for_before_the_first_is_trained(
    call: Call, demos: str, tmp_path: Path
) -> None:
    nobody = ("teacher=vllm", "teacher.model=x", f"teacher.endpoint.address=http://127.0.0.1:{free_port()}")
    chosen = ("demonstrations=messages", f"demonstrations.files={demos}")
    answer = call("train", *QUICK, *chosen, *nobody, "rounds.labels=10", f"hydra.run.dir={tmp_path}/run")
    assert answer.code == 2
    assert "no server answers at http://127.0.0.1:" in answer.err
    assert not list((tmp_path / "run").rglob("episodes.parquet"))


def test_mistakes_are_said_in_one_sentence(call: Call, demos: str, tmp_path: Path) -> None:
    ours = ("student=tiny_bytes", f"hydra.run.dir={tmp_path}/run")
    for arguments, sentence in [
        (["demonstrations=openhands"], "demonstrations.files has no value; give it, as in demonstrations.files=VALUE."),
        (
            ["demonstrations=none", "+demonstrations.files=x"],
            "demonstrations.files is set, but this",
        ),
        (["demonstrations=openhand"], "did you mean demonstrations=openhands?"),
        (["demonstrations=openhands", "demonstrations.files=gone"], "names gone, but there is no such file."),
        (
            ["demonstrations=swe_agent", f"demonstrations.files={demos}"],
            "can be used: 7 x it is of another format: choose demonstrations=messages.",
        ),
    ]:
        answer = call("train", *QUICK, *ours, *arguments)
        assert answer.code == 2
        assert sentence in answer.err
        assert answer.err.startswith("error: ")
        assert answer.err.count("\n") == 1
        assert not (tmp_path / "run" / "rounds" / "000" / "manifest.json").exists()
