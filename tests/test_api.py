"""From Python: a run is trained, looked at and evaluated by the functions that the package offers."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagger_exp import evaluate, load_run, train
from dagger_exp.errors import ConfigError, StoreError
from dagger_exp.types import Actor

QUICK = ("debug=default", "rounds.labels=20", "rounds.steps=1", "evaluation.tasks=3", "evaluation.validation_tasks=2")


def test_a_run_is_trained_looked_at_and_evaluated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(*QUICK, method="sft", seed=3, folder=tmp_path / "a run")
    assert "done in" in capfd.readouterr().out, "the command's own lines"
    assert run.config["seed"] == 3
    table = run.table()
    assert table.num_rows == 2
    assert table["eval/success_rate"].to_pylist() == [row["eval/success_rate"] for row in run.rows]
    assert {turn.actor for one in run.episodes(0) for turn in one.turns} == {Actor.TEACHER}
    assert [len(run.episodes(1, split)) for split in ("heldout", "validation")] == [3, 2]
    assert run.student().num_parameters > 1000
    assert load_run(run.folder).rows == run.rows
    metrics = evaluate(run.folder, "evaluation.tasks=5", folder=tmp_path / "evaluation")
    assert metrics["eval/num_tasks"] == 5


def test_a_mistake_is_the_sentence_of_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rounds\.num_round is unknown; did you mean rounds\.num_rounds"):
        train("rounds.num_round=3", folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(StoreError, match="no run folder"):
        load_run(tmp_path)
