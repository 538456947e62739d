from __future__ import annotations

import asyncio
import math
import time

import pytest

from dagger_exp.engines import gate
from dagger_exp.engines.gate import Gate

LONG_AGO = -math.inf


async def pass_through(num_answers: int) -> list[set[int]]:
    """Let answers come, one in each step of the loop; return which of them went on in the same step."""
    gate, steps, together = Gate(), 0, dict[int, set[int]]()

    async def answer(index: int) -> None:
        for _ in range(index):
            await asyncio.sleep(0)
        await gate.passed(LONG_AGO)
        together.setdefault(steps, set()).add(index)

    answers = [asyncio.ensure_future(answer(index)) for index in range(num_answers)]
    while not all(task.done() for task in answers):
        steps += 1
        await asyncio.sleep(0)
    return list(together.values())


def test_answers_that_come_close_together_go_on_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LONGEST_S", 0.5)
    assert asyncio.run(pass_through(9)) == [set(range(9))]


def test_a_full_group_goes_on_at_once_and_the_next_one_gathers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "LONGEST_S", 3600.0)
    monkeypatch.setattr(gate, "MOST", 4)

    async def play() -> list[bool]:
        gate = Gate()
        answers = [asyncio.ensure_future(gate.passed(LONG_AGO)) for _ in range(7)]
        for _ in range(50):
            await asyncio.sleep(0)
        gone = [answer.done() for answer in answers]
        for answer in answers:
            answer.cancel()
        return gone

    assert asyncio.run(play()) == [True] * 4 + [False] * 3


def test_a_quick_answer_is_not_held_up_and_a_slow_one_no_longer_than_the_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def wait(began: float) -> None:
        await asyncio.wait_for(Gate().passed(began), 10)

    asyncio.run(wait(LONG_AGO))
    monkeypatch.setattr(gate, "LONGEST_S", 3600.0)
    asyncio.run(wait(time.monotonic()))


def test_an_answer_that_is_cut_holds_nobody_up() -> None:
    async def play() -> None:
        gate = Gate()
        one, other = (asyncio.ensure_future(gate.passed(LONG_AGO)) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        await other
        assert one.cancelled()
        await gate.passed(LONG_AGO)

    asyncio.run(asyncio.wait_for(play(), 10))
