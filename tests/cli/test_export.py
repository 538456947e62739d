"""dagger-export: which rows it writes, what TRL makes of them, and what it says where it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.store.store import Store
from dagger_exp.types import SCHEMA_VERSION, Actor, Episode, StopReason, Turn

Call = Callable[..., Any]
QUICK = ("debug=default", "rounds.labels=30", "rounds.steps=2", "evaluation.tasks=2", "schedule=constant")


def turn(index: int, shown: str, said: str, label: str | None, *, ids: Sequence[int] = (1, 2)) -> Turn:
    """Return a turn; its label was executed where it is what was said."""
    actor = Actor.TEACHER if label == said else Actor.STUDENT
    asked = {} if label is None else {"label_text": label, "label_ids": ids if label == said else (7, 2)}
    return Turn(index, actor, shown, (3,), index == 0, said, ids, **asked)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A run folder with a closed round of three episodes, one of which infrastructure ended, and an open round."""
    writer = Store(tmp_path / "run" / "rounds", "run")
    turns = [turn(0, "go", "a", "a"), turn(1, "x", "b", "c"), turn(2, "y", "d", None)]
    writer.commit(Episode(0, 0, "t0", StopReason.SOLVED, turns))
    writer.commit(Episode(0, 1, "t1", StopReason.SANDBOX, turns))
    writer.commit(Episode(0, 2, "t2", StopReason.UNSOLVED, [turn(0, "go", "e", "f")]))
    writer.close_round(0, 3, {})
    writer.commit(Episode(1, 0, "t0", StopReason.SOLVED, turns))
    return tmp_path / "run"


def exported(call: Call, store: Path, *arguments: str) -> list[dict[str, Any]]:
    """Return the rows that an export writes."""
    answer = call("export", str(store), "--out", "out.jsonl", *arguments)
    assert answer.code == 0
    assert answer.err.endswith(" observations are one message of the user each: no tokens tell who said what.\n")
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert answer.out == f"out.jsonl: {len(rows)} rows\n"
    return rows


def said(messages: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return messages as tuples."""
    return [tuple(message.values()) for message in messages]


def test_a_row_per_label(call: Call, store: Path) -> None:
    first, second, third = exported(call, store)
    facts = {"task_id": "t0", "round_index": 0, "episode_index": 0, "resolved": True, "turn_index": 1}
    assert {name: second[name] for name in facts} == facts
    shown = [("user", "go", 0), ("assistant", "a", 0), ("user", "x", 0)]
    assert said(second["messages"]) == [*shown, ("assistant", "c", 1)]
    assert said(second["prompt"]) == [message[:2] for message in shown]
    assert said(second["completion"]) == [("assistant", "c")]
    assert said(first["messages"]) == [("user", "go", 0), ("assistant", "a", 1)]
    assert (third["task_id"], third["resolved"], said(third["completion"])) == ("t2", False, [("assistant", "f")])


def test_only_labels_that_differ(call: Call, store: Path) -> None:
    rows = exported(call, store / "rounds", "--only", "labels", "--rounds", "0")
    assert [said(row["completion"]) for row in rows] == [[("assistant", "c")], [("assistant", "f")]]


def test_only_what_was_executed(call: Call, store: Path) -> None:
    first, second = exported(call, store, "--only", "executed")
    weights = [(message["content"], message["weight"]) for message in first["messages"]]
    assert weights == [("go", 0), ("a", 1), ("x", 0), ("b", 0), ("y", 0), ("d", 0)]
    assert second["messages"][1] == {"role": "assistant", "content": "e", "weight": 0}
    assert "prompt" not in first


def test_mistakes_are_said_in_one_sentence(call: Call, store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "rounds"
    other.mkdir(parents=True)
    (other / "store.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1, "run_id": "x"}))
    (tmp_path / "file").write_text("")
    damaged = shutil.copytree(store, tmp_path / "damaged")
    (damaged / "student").mkdir()
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (damaged / "student" / name).write_text("{")
    for arguments, sentence in [
        ([str(tmp_path), "--out", "o"], f"{tmp_path} is no store: give a run folder, or its rounds/ folder."),
        ([str(store), "--out", "no/o"], "no/o cannot be written (No such file or directory): give another file with"),
        ([str(store), "--out", "file/o"], "file/o cannot be written (Not a directory): give another file with --out."),
        ([str(store), "--out", "."], ". cannot be written ("),
        ([str(other), "--out", "o"], f"store.json has schema version {SCHEMA_VERSION + 1} and this code reads"),
        ([str(store), "--out", "o", "--rounds", "1"], "--rounds 1 is no closed round: choose of 0."),
        ([str(damaged), "--out", "o"], f"the tokenizer in {damaged}/student cannot be read ("),
    ]:
        answer = call("export", *arguments)
        assert (answer.code, answer.out) == (2, "")
        assert answer.err.startswith("error: ")
        assert sentence in answer.err
        assert answer.err.count("\n") == 1
        assert not list(tmp_path.rglob("*.tmp"))
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_trl_trains_on_the_tokens_of_the_store(call: Call, tmp_path: Path) -> None:
    """TRL makes of the rows the very prompts and labels that the store has, and takes two steps on them."""
    answer = call("train", *QUICK, "schedule.start=0.5", f"hydra.run.dir={tmp_path}/run")
    assert answer.code == 0, answer.err
    answer = call("export", f"{tmp_path}/run", "--out", f"{tmp_path}/rows.jsonl")
    assert (answer.code, answer.err) == (0, ""), "every observation was taken apart by the tokenizer of the run"
    rows = trained_rows(f"{tmp_path}/run/student", tmp_path / "rows.jsonl")
    view = Store.open(tmp_path / "run" / "rounds")
    reader = view.read(*view.rounds())
    kept = [one for one in reader.episodes(range(len(reader))) if not one.stop_reason.is_infrastructure]
    wanted = [
        ([*one.prompt_ids(turn.turn_index), *turn.label_ids], list(turn.label_ids))
        for one in kept
        for turn in one.turns
        if turn.label_ids is not None
    ]
    assert rows == wanted
    assert any(turn.label_ids != turn.response_ids for one in kept for turn in one.turns), "the student was corrected"


def trained_rows(student: str, path: Path) -> list[tuple[list[int], list[int]]]:
    """Train two steps with TRL, and return the tokens of its rows and those of them that have a loss."""
    from datasets import load_dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    folder = path.parent / "trl"
    settings = SFTConfig(
        str(folder), max_steps=2, per_device_train_batch_size=4, report_to="none", use_cpu=True, save_strategy="no"
    )
    data = load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder / "cache"))
    trainer = SFTTrainer(student, args=settings, train_dataset=data)
    assert trainer.train().global_step == 2
    found: Any = trainer.train_dataset
    return [(row["input_ids"], [token for token in row["labels"] if token != -100]) for row in found]
