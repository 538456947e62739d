"""What a person sees fits 80 columns, and the next command is one that can be typed."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

import pytest

from dagger_exp.cli.terminal import OF_METHODS, TABLES, Terminal, chosen
from dagger_exp.config.checks import check
from dagger_exp.config.composing import compose_checked
from dagger_exp.types import Actor, Episode, StopReason, Turn

ROW = {
    "round": 12,
    "round/beta": 0.5,
    "rollout/student_turn_rate": 1.0,
    "rollout/num_labels": 123456,
    "rollout/agreement_rate": 1.0,
    "rollout/num_episodes": 123456,
    "rollout/success_rate": 1.0,
    "eval/malformed_rate": 1.0,
    "eval/success_rate": 1.0,
    "eval/success_low": 0.96,
    "eval/success_high": 1.0,
    "round/loss": 12.345,
    "round/collect_s": 9999.9,
}


@pytest.mark.parametrize("command", ["train", "collect"])
def test_a_line_of_a_round_fits_eighty_columns(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(compose_checked("train", []), 1_000_000, tmp_path, command)
    terminal.end_round(ROW)
    heading, line = capsys.readouterr().out.splitlines()[-2:]
    assert len(heading) == len(line) <= 79
    assert heading.split() == " ".join(TABLES[command]).split()


@pytest.mark.parametrize(
    "typed",
    ["schedule=linear schedule.floor=0.2", "labeler.turns=student schedule=constant", "mixing=student schedule=none"],
)
def test_the_next_command_is_legal_whatever_was_typed(typed: str, tmp_path: Path) -> None:
    command = ["dagger-train", *typed.split(), "hydra.run.dir=/x", "env.num_bugs=1"]
    (tmp_path / "manifest.json").write_text(json.dumps({"command": command}))
    assert chosen(tmp_path, but=OF_METHODS) == ["env.num_bugs=1"]
    check(compose_checked("train", [*chosen(tmp_path, but=OF_METHODS), "method=sft"]))


def test_episodes_may_end_while_the_lines_are_drawn(tmp_path: Path) -> None:
    terminal, is_over = Terminal(compose_checked("train", []), 1_000_000, tmp_path), threading.Event()
    terminal.begin("collect", 0, 10)
    turns = [Turn(0, actor, "", (), True, "", ()) for actor in Actor] * 20

    def play() -> None:
        while not is_over.is_set():
            terminal.advance(0, episode=Episode(0, 0, "t", StopReason.SOLVED, turns))

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    playing = threading.Thread(target=play)
    playing.start()
    try:
        drawn = [terminal._live.get_renderable() for _ in range(500)]
    finally:
        sys.setswitchinterval(usual)
        is_over.set()
        playing.join()
    assert len(drawn) == 500
