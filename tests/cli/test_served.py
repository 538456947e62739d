"""Runs with a teacher behind an address: the whole command, and what it must not write down."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dagger_exp.store.store import Store
from dagger_exp.types import Actor
from tests.commands import Call
from tests.provider import MODEL, Provider, free_port, serving

KEY = "sk-planted-4711"
QUICK = ("debug=default", "evaluation.tasks=2", "rollout.turn_timeout_s=20")


def openai(address: str) -> tuple[str, ...]:
    return ("teacher=openai", f"teacher.model={MODEL}", f"teacher.endpoint.address={address}")


@pytest.mark.slow
def test_a_key_reaches_the_server_and_nothing_that_is_written(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    provider = Provider(fault_rate=0.1)
    with serving(provider) as address:
        answer = call(
            "train", *QUICK, *openai(address), "teacher.endpoint.timeout_s=0.5", "teacher.endpoint.first_pause_s=0.02",
            "env.max_turns=4", "logger=wandb_offline", f"hydra.run.dir={tmp_path}/run",
        )  # fmt: skip
    assert answer.code == 0, answer.err
    assert {headers["Authorization"] for _, _, headers in provider.requests} == {f"Bearer {KEY}"}
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in answer.out + answer.err


def test_what_the_teacher_costs_is_in_every_row(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(Provider()) as address:
        answer = call(
            "train", *QUICK, *openai(address), "env.max_turns=4", "rollout.concurrency=2",
            "teacher_budget.tokens_per_round=400", "teacher_budget.response_price=1e6", f"hydra.run.dir={tmp_path}/run",
        )  # fmt: skip
    assert answer.code == 0, answer.err
    assert "teacher_budget.tokens_per_round is spent" in answer.out
    for row in json.loads((tmp_path / "run/summary.json").read_text())["rounds"]:
        assert row["rollout/num_teacher_prompt_tokens"] + row["rollout/num_teacher_response_tokens"] >= 400
        assert row["rollout/teacher_cost"] == row["rollout/num_teacher_response_tokens"]
        assert 0 < row["rollout/num_labels"] < 30


@pytest.mark.parametrize(
    ("command", "goal", "words"),
    [
        ("train", ("rounds.labels=60", "rounds.steps=2"), "1[1-9] of 60 labels"),
        ("collect", ("rounds.labels=60",), "1[1-9] of 60 labels"),
        ("collect", ("rounds.labels=null", "rounds.tasks=20"), "[34] of 20 episodes"),
    ],
)
def test_a_round_that_the_budget_ends_says_what_it_has(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, goal: tuple[str, ...], words: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(Provider()) as address:
        answer = call(
            command, *QUICK, *openai(address), *goal, "rounds.num_rounds=1", "env.max_turns=4", "rollout.concurrency=2",
            "teacher_budget.tokens_per_round=400", f"hydra.run.dir={tmp_path}/run",
        )  # fmt: skip
    assert answer.code == 0, answer.err
    said = rf"round 0 was closed with {words}: teacher_budget\.tokens_per_round is spent\.\n"
    assert len(re.findall(f"warning: {said}", answer.out)) == 1
    assert re.search(said, (tmp_path / "run/train.log").read_text())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("teacher.model=other",), "does not serve other: set teacher.model to one of student."),
        (("teacher.endpoint.api_key_env=NO_KEY",), "is missing: set the variable NO_KEY."),
        (("teacher.endpoint.address=localhost",), "write it as http://HOST:PORT"),
        ((f"teacher.endpoint.address=http://127.0.0.1:{free_port()}",), "no server answers at http://127.0.0.1:"),
    ],
)
def test_a_teacher_that_cannot_answer_is_refused_before_the_first_episode(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: tuple[str, ...], words: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    provider = Provider()
    with serving(provider) as address:
        answer = call("collect", *QUICK, *openai(address), *changes, f"hydra.run.dir={tmp_path}/run")
    assert answer.code == 2
    assert words in answer.err
    assert "Traceback" not in answer.err
    assert not provider.requests
    assert not list(tmp_path.rglob("episodes/*"))


def test_the_line_of_a_server_is_printed(call: Call) -> None:
    answer = call("serve", "teacher", "teacher=qwen3_coder_30b", "--tensor-parallel-size", "4")
    assert answer.code == 0
    assert "--model Qwen/Qwen3-Coder-30B-A3B-Instruct" in answer.out
    assert not any(words in answer.out for words in ("VLLM_SERVER_DEV_MODE", "LORA", "tool", "--max-model-len"))
    assert answer.out.rstrip().endswith("--tensor-parallel-size 4")
    assert "--max-logprobs" not in answer.out
    elsewhere = ("engine=vllm", "engine.server.python=/else/where/python")
    assert " /else/where/python -m vllm." in call("serve", "teacher", "teacher=qwen3_coder_30b", *elsewhere).out
    many = ("labeler.logprobs=true", "labeler.num_top=50")
    assert call("serve", "teacher", "teacher=qwen3_coder_30b", *many).out.rstrip().endswith("--max-logprobs 50")
    answer = call("serve", "student", "student=qwen3_4b_instruct", "engine=vllm", "student.max_context_tokens=9000")
    assert "--max-model-len 9000 --enable-lora --max-lora-rank 16" in answer.out
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True VLLM_SERVER_DEV_MODE=1" in answer.out


@pytest.mark.parametrize(
    ("teacher", "scaffold", "parser"),
    [
        (("teacher=qwen3_coder_30b",), "tools", "qwen3_coder"),
        (("teacher=vllm", "teacher.model=x"), "tools", "hermes"),
        (("teacher=vllm", "teacher.model=x"), "bash", None),
    ],
)
def test_a_teacher_is_served_as_the_scaffold_needs_it(
    call: Call, teacher: tuple[str, ...], scaffold: str, parser: str | None
) -> None:
    answer = call("serve", "teacher", *teacher, "env=pypi_bugs", f"scaffold={scaffold}")
    assert answer.code == 0, answer.err
    flags = f"--enable-auto-tool-choice --tool-call-parser {parser}\n"
    assert answer.out.endswith(flags) if parser else "tool" not in answer.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("student",), "needs engine=vllm"),
        (("student", "engine=vllm"), "name student.path"),
        (
            ("student", "engine=vllm", "student.init=RUN/checkpoints/last.ckpt"),
            "RUN/checkpoints/last.ckpt holds weights that lie in no folder yet: give RUN once it has ended.",
        ),
        (("teacher",), "needs teacher=vllm"),
        (("teacher", "teacher=vlm"), "teacher=vlm"),
        (("teacher", "teacher=openai"), "is https://api.openai.com, which serves itself; for a server of your own"),
        (
            ("teacher", "teacher=openai", "teacher.endpoint.address=http://a:1"),
            "needs teacher=vllm teacher.model=FOLDER",
        ),
        (
            ("student", "student=qwen3_8b", "engine=vllm", "engine.server.port=x"),
            "engine.server.port is 'x'; it must be a whole number or null.",
        ),
        (
            ("student", "student=qwen3_8b", "engine=vllm", "engine.server=null"),
            "engine.server is null; leave engine.server=null out, or set its keys, as in engine.server.KEY=VALUE.",
        ),
        (("student", "student=qwen3_8b", "engine=vllm", "student.lora=null"), "student.lora is null; leave"),
        (("teacher", "teacher=vllm", "teacher.model=x", "teacher.endpoint=3"), "teacher.endpoint is 3; leave"),
        (
            ("teacher", "teacher=vllm", "teacher.model=x", "teacher.endpoint.address=http://a:b"),
            "teacher.endpoint.address is http://a:b; write http://HOST:PORT.",
        ),
    ],
)
def test_a_server_for_nothing_is_refused(call: Call, arguments: tuple[str, ...], words: str) -> None:
    answer = call("serve", *arguments)
    assert answer.code == 2
    assert words in answer.err


@pytest.mark.slow
def test_an_adapter_is_trained_evaluated_and_teaches(call: Call, tmp_path: Path) -> None:
    enough = ("student.lora.rank=32", "rounds.labels=[120,60]", "rounds.steps=[60,20]", "optimizer.lr=0.01")
    lora = (*QUICK, "student.finetuning=lora", *enough)  # for answers that end; one that is cut is no label
    assert call("train", *lora, f"hydra.run.dir={tmp_path}/run").code == 0
    rows = json.loads((tmp_path / "run/summary.json").read_text())["rounds"]
    for place in (tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt"):
        answer = call("evaluate", f"student.init={place}", f"hydra.run.dir={tmp_path}/evaluated_{place.name}")
        assert answer.code == 0, answer.err
        found = json.loads((tmp_path / f"evaluated_{place.name}/evaluation.json").read_text())
        assert found["eval/success_rate"] == rows[-1]["eval/success_rate"]
    for place in (tmp_path / "run", tmp_path / "run/checkpoints/last.ckpt"):
        answer = call("serve", "student", "engine=vllm", "student=hf", f"student.path={place}")
        assert f"--model {tmp_path}/run/student/base " in answer.out  # where the untrained weights are
        assert "--enable-lora --max-lora-rank 32" in answer.out
    taught = ("teacher=checkpoint", f"teacher.path={tmp_path}/run", "teacher.max_new_tokens=16")
    answer = call("train", *QUICK, *taught, f"hydra.run.dir={tmp_path}/taught")
    assert answer.code == 0, answer.err
    answer = call("train", *QUICK, f"student.init={tmp_path}/run", "student.lora.rank=8")
    assert answer.code == 2
    assert answer.err.startswith(f"error: student.lora.rank=8 changes nothing, since {tmp_path}/run is an adapter")


@pytest.mark.slow
def test_a_run_records_them_and_another_vocabulary_is_refused(call: Call, tmp_path: Path) -> None:
    quick = ("debug=default", "evaluation.tasks=2", "rounds.labels=null", "rounds.num_rounds=1")
    trained = ("rounds.tasks=16", "rounds.steps=50", "optimizer.lr=0.005", f"hydra.run.dir={tmp_path}/teacher")
    assert call("train", *quick, *trained).code == 0
    teacher = ("teacher=checkpoint", f"teacher.path={tmp_path}/teacher", "teacher.max_new_tokens=16", "rounds.tasks=3")
    scoring = (*quick, *teacher, "labeler.logprobs=true", "labeler.num_top=2", "schedule.start=0.5")
    answer = call("collect", *scoring, f"student.init={tmp_path}/teacher", f"hydra.run.dir={tmp_path}/scored")
    assert answer.code == 0, answer.err
    store = Store.open(tmp_path / "scored/rounds")
    turns = [one for episode in store.read(0).episodes(range(3)) for one in episode.turns]
    assert {one.actor for one in turns} == set(Actor) - {Actor.REPLAY}
    for one in turns:
        expected = len(one.response_ids) if one.actor is Actor.STUDENT else 0
        assert (len(one.teacher_logprobs), len(one.teacher_top_ids)) == (expected, 2 * expected)
    answer = call("collect", *scoring, "student=tiny_bytes", f"hydra.run.dir={tmp_path}/other")
    assert answer.code == 2
    assert "vocabularies of the student and of the teacher" in answer.err
    answer = call("collect", *quick, "rounds.tasks=3", "labeler.logprobs=true", f"hydra.run.dir={tmp_path}/scripted")
    assert "'scripted' gives no log-probabilities; choose labeler.turns=all" in answer.err
