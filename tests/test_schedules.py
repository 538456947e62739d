"""Schedules: their ends, their ways between them, and the numbers they refuse."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate
from hypothesis import assume, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dagger_exp.errors import ConfigError
from dagger_exp.schedules import Constant, Cosine, Exponential, InverseSigmoid, Linear, Ramp, Shape, Step

CONF = Path(__file__).parents[1] / "conf" / "schedule"
MOVING = [Linear, Exponential, Cosine, InverseSigmoid, Step]
WHOLE: dict[str, Any] = {"start": 1.0, "end": 0.0, "num_rounds": 5}
probability = st.floats(0.01, 1.0)


def curve(schedule: Shape, num_rounds: int = 5) -> list[float]:
    return [schedule(round_index) for round_index in range(num_rounds)]


def from_yaml(name: str, num_rounds: int) -> Shape:
    cfg = OmegaConf.create({"rounds": {"num_rounds": num_rounds}, "schedule": OmegaConf.load(CONF / f"{name}.yaml")})
    return instantiate(cfg.schedule)


@st.composite
def schedules(draw: st.DrawFn) -> Shape:
    num_rounds = draw(st.integers(2, 12))
    return draw(st.sampled_from(MOVING))(
        start=draw(probability),
        end=draw(probability),
        num_rounds=num_rounds,
        warmup_rounds=draw(st.integers(0, num_rounds - 2)),
        floor=draw(st.floats(0.0, 1.0)),
    )


@given(schedules())
def test_every_schedule_goes_from_start_to_end_and_stays(schedule: Shape) -> None:
    for round_index in range(schedule.warmup_rounds + 1):
        assert schedule(round_index) == max(schedule.floor, schedule.start)
    for beyond in (0, 1, 2, 1000):
        assert schedule(schedule.num_rounds - 1 + beyond) == pytest.approx(max(schedule.floor, schedule.end))


@given(schedules())
def test_every_schedule_is_a_probability_and_never_turns_back(schedule: Shape) -> None:
    betas = curve(schedule, schedule.num_rounds + 2)
    assert all(schedule.floor <= beta <= 1.0 for beta in betas)
    sign = 1 if schedule.end >= schedule.start else -1
    assert all(sign * (after - before) >= -1e-12 for before, after in pairwise(betas))


@given(schedules(), st.integers(0, 12))
def test_a_floor_is_a_lower_bound_and_nothing_else(schedule: Shape, round_index: int) -> None:
    assume(schedule.floor > 0)
    bare = type(schedule)(
        start=schedule.start, end=schedule.end, num_rounds=schedule.num_rounds, warmup_rounds=schedule.warmup_rounds
    )
    assert schedule(round_index) == max(schedule.floor, bare(round_index))


@pytest.mark.parametrize(
    ("schedule", "betas"),
    [
        (Linear(**WHOLE), [1, 0.75, 0.5, 0.25, 0]),
        (Linear(**WHOLE, warmup_rounds=2), [1, 1, 1, 0.5, 0]),
        (Cosine(**WHOLE), [1, 0.853553, 0.5, 0.146447, 0]),
        (InverseSigmoid(**WHOLE), [1, 0.929896, 0.5, 0.070104, 0]),
        (Step(**WHOLE), [1, 1, 0, 0, 0]),
        (Step(**{**WHOLE, "num_rounds": 4}), [1, 1, 0, 0, 0]),
        (Exponential(start=0.8, end=0.2, num_rounds=3), [0.8, 0.4, 0.2, 0.2, 0.2]),
        (Constant(start=0.3, end=0.3, num_rounds=2), [0.3] * 5),
        (Constant(start=0.3, end=0.3, num_rounds=2, floor=0.4), [0.4] * 5),
        (Linear(**{**WHOLE, "num_rounds": 1}), [1, 0, 0, 0, 0]),
        (Linear(**WHOLE, warmup_rounds=4), [1, 1, 1, 1, 1]),
    ],
)
def test_shapes(schedule: Shape, betas: list[float]) -> None:
    assert curve(schedule) == pytest.approx(betas, abs=1e-6)


@pytest.mark.parametrize("num_rounds", [5, 10])
def test_the_schedule_of_the_paper_does_not_depend_on_the_length_of_the_run(num_rounds: int) -> None:
    expected = [max(0.6, 1 - 0.2 * round_index) for round_index in range(num_rounds)]
    assert curve(from_yaml("paper", num_rounds), num_rounds) == pytest.approx(expected)


def test_the_yaml_defaults() -> None:
    assert curve(from_yaml("exponential", 5)) == pytest.approx([0.5**round_index for round_index in range(5)])
    assert curve(from_yaml("first_round", 5)) == [1, 0, 0, 0, 0]
    assert curve(from_yaml("linear", 5)) == curve(Linear(**WHOLE))
    assert curve(from_yaml("constant", 5)) == [0.5] * 5


@pytest.mark.parametrize("shape", [Constant, *MOVING])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("start", 1.1),
        ("start", -0.1),
        ("end", float("nan")),
        ("end", 2.0),
        ("floor", -0.5),
        ("num_rounds", 0),
        ("warmup_rounds", -1),
    ],
)
def test_bad_numbers_are_refused_by_name(shape: type[Shape], key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"schedule\.{key}"):
        shape(**{**WHOLE, key: value})


@pytest.mark.parametrize("key", ["start", "end"])
def test_exponential_refuses_zero(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"schedule\.{key}"):
        Exponential(**{**WHOLE, "end": 0.5, key: 0.0})


def test_a_ramp_grows_up_to_its_cap() -> None:
    assert [Ramp(start=0, step=20, cap=100)(round_index) for round_index in range(7)] == [0, 20, 40, 60, 80, 100, 100]
    assert [Ramp(start=4, step=0, cap=4)(round_index) for round_index in range(2)] == [4, 4]


def test_a_ramp_may_shrink_to_nothing() -> None:
    assert [Ramp(start=24, step=-10, cap=24)(round_index) for round_index in range(4)] == [24, 14, 4, 0]


def test_constant_has_no_other_end() -> None:
    with pytest.raises(ConfigError, match=r"set schedule\.start alone"):
        Constant(start=0.5, end=0.4, num_rounds=3)


@pytest.mark.parametrize(("key", "value"), [("start", -1), ("start", 11), ("cap", -1)])
def test_a_ramp_refuses_bad_numbers(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=key):
        Ramp(**{"start": 0, "step": 2, "cap": 10, key: value})
