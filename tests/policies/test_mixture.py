"""Who acts: the ends of the mixtures, their rates, and coins that depend on nothing but their key."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from scipy.stats import chisquare

from dagger_exp.policies.mixture import StudentOnly, SwitchMixture, TeacherOnly, TurnMixture
from dagger_exp.protocols import Mixing
from dagger_exp.schedules import Constant, Linear, Ramp
from dagger_exp.types import Actor, Choice, Key

NUM_TURNS = 25
EPISODES = [Key(0, 0, f"train-{n % 89:06d}", n) for n in range(500)]


def turns(mixing: Mixing, episode: Key, num_turns: int = NUM_TURNS) -> list[Choice]:
    return [mixing.choose(episode._replace(turn_index=turn_index)) for turn_index in range(num_turns)]


def constant(beta: float) -> TurnMixture:
    return TurnMixture(schedule=Constant(start=beta, end=beta, num_rounds=1))


def switch(length: int, *, teacher_first: bool = False) -> SwitchMixture:
    return SwitchMixture(t_max=Ramp(start=length, step=0, cap=length), teacher_first=teacher_first)


def actors(choices: Sequence[Choice]) -> list[Actor]:
    return [choice.actor for choice in choices]


@pytest.mark.parametrize(
    ("mixing", "actor"),
    [
        (constant(0.0), Actor.STUDENT),
        (constant(1.0), Actor.TEACHER),
        (StudentOnly(), Actor.STUDENT),
        (TeacherOnly(), Actor.TEACHER),
        (switch(0), Actor.TEACHER),
        (switch(0, teacher_first=True), Actor.STUDENT),
    ],
)
def test_ends(mixing: Mixing, actor: Actor) -> None:
    assert {choice.actor for episode in EPISODES for choice in turns(mixing, episode)} == {actor}


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.8])
def test_the_share_of_the_teachers_turns_is_beta(beta: float) -> None:
    choices = [choice for episode in EPISODES for choice in turns(constant(beta), episode)]
    num_teacher = actors(choices).count(Actor.TEACHER)
    assert (
        chisquare([num_teacher, len(choices) - num_teacher], [beta * len(choices), (1 - beta) * len(choices)])[1] > 1e-3
    )
    for choice in choices:
        assert choice.coin is not None
        assert choice.beta == beta
        assert choice.actor is (Actor.TEACHER if choice.coin < beta else Actor.STUDENT)


def test_beta_is_that_of_the_round() -> None:
    mixing = TurnMixture(schedule=Linear(start=1.0, end=0.0, num_rounds=3))
    for round_index, beta in enumerate([1.0, 0.5, 0.0]):
        assert mixing.beta(round_index) == beta
        assert {choice.beta for choice in turns(mixing, EPISODES[0]._replace(round_index=round_index))} == {beta}


def test_a_larger_beta_only_hands_turns_to_the_teacher() -> None:
    for episode in EPISODES[:50]:
        few, many = actors(turns(constant(0.3), episode)), actors(turns(constant(0.6), episode))
        assert all(after is Actor.TEACHER for before, after in zip(few, many, strict=True) if before is Actor.TEACHER)


@pytest.mark.parametrize("mixing", [constant(0.5), switch(10)])
def test_coins_do_not_depend_on_the_order_of_the_questions(mixing: Mixing) -> None:
    keys = [episode._replace(turn_index=turn_index) for episode in EPISODES[:40] for turn_index in range(10)]
    in_order = {key: mixing.choose(key) for key in keys}
    random.Random(0).shuffle(keys)
    assert {key: mixing.choose(key) for key in keys} == in_order


@pytest.mark.parametrize("teacher_first", [False, True])
def test_one_hand_over_before_turn_kappa(teacher_first: bool) -> None:
    first, second = (Actor.TEACHER, Actor.STUDENT) if teacher_first else (Actor.STUDENT, Actor.TEACHER)
    for episode in EPISODES[:100]:
        choices = turns(switch(10, teacher_first=teacher_first), episode)
        kappa = choices[0].kappa
        assert kappa is not None
        assert {choice.kappa for choice in choices} == {kappa}
        assert actors(choices) == [first] * kappa + [second] * (NUM_TURNS - kappa)


def test_kappa_is_uniform_with_both_ends_included() -> None:
    kappas = [switch(7).choose(Key(0, 0, "t", index)).kappa for index in range(8000)]
    counts = [kappas.count(kappa) for kappa in range(8)]
    assert sum(counts) == len(kappas)
    assert chisquare(counts).pvalue > 1e-3


def test_the_switch_follows_the_ramp_of_the_rounds() -> None:
    mixing = SwitchMixture(t_max=Ramp(start=0, step=2, cap=3), max_turns=Ramp(start=4, step=4, cap=10))
    for round_index, t_max in enumerate([0, 2, 3, 3]):
        kappas = {mixing.choose(key._replace(round_index=round_index)).kappa for key in EPISODES}
        assert kappas == set(range(t_max + 1))
    assert mixing.max_turns is not None
    assert [mixing.max_turns(round_index) for round_index in range(4)] == [4, 8, 10, 10]


@pytest.mark.parametrize("mixing", [switch(3), StudentOnly(), TeacherOnly()])
def test_without_coins_there_is_no_beta_and_no_cap(mixing: Mixing) -> None:
    assert mixing.beta(0) is None
    assert mixing.max_turns is None
    assert mixing.choose(EPISODES[0]).beta is None
    assert constant(0.5).max_turns is None
