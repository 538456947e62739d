"""Runs as W&B has them: folders that offline runs left, and a server that is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dagger_exp.analysis.settings import settings_of
from dagger_exp.analysis.wandb_source import load_offline, load_server, offline_folders, rows_by_round
from dagger_exp.errors import StoreError

LOG = """
import pathlib, sys, wandb
settings = wandb.Settings(mode="offline", silent=True, console="off", x_disable_stats=True)
for place, rounds, exit_code in (("first", (0, 1), 1), ("second", (1, 2, 3), 0)):
    folder = pathlib.Path(sys.argv[1], place)
    folder.mkdir()
    config = {"seed": 3, "manifest": {"commit": "c0ffee", "choices": None}}
    started = {"id": "same", "name": "run", "resume": "allow", "config": config}
    run = wandb.init(project="project", dir=folder, settings=settings, **started)
    for index in rounds:
        run.log({"trainer/global_step": index, "train/loss": 1.0})
        run.log({"round": index, "round/num_steps": 4, "eval/success_rate": 0.1 * index + 0.01 * len(rounds)})
    run.finish(exit_code=exit_code)
"""
"""A run that failed after two rounds, and was started again with the last of them."""


def test_offline_folders_of_one_id_are_one_run_and_a_round_logged_again_counts_once(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", LOG, str(tmp_path)], check=True, capture_output=True)
    folders = [folder for place in ("first", "second") for folder in offline_folders(tmp_path / place / "wandb")]
    (run,), complaints = load_offline(folders)
    assert (run.name, run.state, run.config["seed"], run.folder) == ("run", "finished", 3, None)
    assert (run.commit, run.choices, settings_of(run.config)) == ("c0ffee", {}, {"seed": 3})
    assert [row["round"] for row in run.rows] == [0, 1, 2, 3]
    assert [row["eval/success_rate"] for row in run.rows] == pytest.approx([0.02, 0.13, 0.23, 0.33])
    assert complaints == []


def test_a_damaged_offline_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "offline-run-1"
    folder.mkdir()
    (folder / "run-1.wandb").write_bytes(b"no log")
    runs, complaints = load_offline(offline_folders(tmp_path))
    assert runs == []
    assert str(folder) in complaints[0]


def test_a_run_folder_is_no_offline_folder(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    assert offline_folders(tmp_path) == []


def test_rows_of_training_steps_and_of_rounds_that_are_not_over_are_left_out() -> None:
    history = [{"train/loss": 1.0}, {"round": 0}, {"round": 1, "round/num_steps": 4, "_step": 7, "samples": "table"}]
    assert rows_by_round(history) == ({"round": 1, "round/num_steps": 4},)


@pytest.mark.parametrize("address", ["wandb:", "wandb:entity", "wandb:entity/", "wandb:a/b/c/d"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(StoreError, match="write wandb:entity/project"):
        load_server(address)


def test_without_a_login_the_mend_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="wandb login"):
        load_server("wandb:entity/project")
