"""Every knob reaches the algorithm: another value of a key, or another option of a group, changes what is done.

Each row names a key, the choices before and after the change, and what is looked at: the rows that were sampled, the
tokens that were trained, the norm of the clipped gradient, the temperature at the engine, the tasks that were played,
who acted. `expected` says what the change must make of it; by default the two runs must differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dagger_exp.config.mistakes import CONF_FOLDER
from dagger_exp.errors import DataError
from dagger_exp.types import Actor, StopReason, Usage
from tests.knobs.seen import Seen, seen

Looked = Callable[[Seen], Any]
PASSES = ("rounds.steps=null", "rounds.labels=null", "rounds.tasks=3")
THREE = ("rounds.num_rounds=3",)
STUDENT = ("mixing=student", "schedule=none", "labeler.turns=all")
HALF = ("schedule=constant", "schedule.start=0.5")


def differ(before: Any, after: Any) -> bool:
    return before != after


@dataclass(frozen=True)
class Knob:
    """One row: `base` holds for both runs, `change` for the second."""

    key: str
    change: tuple[str, ...]
    look: Looked
    expected: Callable[[Any, Any], bool] = differ
    base: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(self.change) or self.key


def becomes(before: Any, after: Any) -> Callable[[Any, Any], bool]:
    return lambda one, other: (one, other) == (before, after)


def actors(run: Seen) -> list[list[str]]:
    return [["".join(turn.actor.value[0] for turn in one.turns) for one in episodes] for episodes in run.rounds]


def betas(run: Seen) -> list[float | None]:
    return [episodes[0].turns[0].beta for episodes in run.rounds]


def tasks(run: Seen) -> list[list[str]]:
    return [[one.task_id for one in episodes] for episodes in run.rounds]


def last_rounds(run: Seen) -> set[int]:
    """Return the rounds that the last round is trained on."""
    last = max(step.epoch for step in run.steps)
    return {index for step in run.steps if step.epoch == last for index, _ in step.episodes}


def steps(run: Seen) -> list[int]:
    return list(Counter(step.epoch for step in run.steps).values())


def lrs(run: Seen) -> list[float]:
    return [step.lr for step in run.steps]


def trained(run: Seen) -> set[tuple[int, int]]:
    return {place for step in run.steps for place in step.episodes}


def endings(run: Seen) -> set[bool]:
    """Return whether the episodes that were trained on were solved."""
    return {run.rounds[index][place].solved for index, place in trained(run)}


def labelled(run: Seen) -> set[Actor]:
    return {turn.actor for one in chain(*run.rounds) for turn in one.turns if turn.label_ids is not None}


def sampled(phase: str, name: str) -> Looked:
    return lambda run: {getattr(sampling, name) for at, sampling in run.samplings if at == phase}


def spent(run: Seen) -> str | None:
    """Return the limit that a million tokens of each kind reach."""
    budget = run.run.collector.runner.budget
    budget.in_round = Usage(1_000_000, 1_000_000)
    return budget.spent


def cost(run: Seen) -> float:
    return run.run.collector.runner.budget.cost(Usage(1_000_000, 1_000_000))


def observations(run: Seen) -> list[list[str]]:
    return [[turn.observation for turn in one.turns] for one in run.rounds[0]]


def longest(run: Seen) -> int:
    return max(len(one.turns) for one in chain(*run.rounds))


def shapes(run: Seen) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in run.module.model.named_parameters()}


def optimizer(run: Seen) -> Any:
    return run.trainer.optimizers[0]


KNOBS = [
    Knob("seed", ("seed=1",), tasks),
    Knob(
        "seed",
        ("seed=1",),
        lambda run: {sampling.key.seed for at, sampling in run.samplings if at == "collect" and sampling.key},
        becomes({0}, {1}),
        base=HALF,
    ),
    Knob("num_threads", ("num_threads=2",), lambda run: run.num_threads, becomes(1, 2)),
    Knob("aggregation", ("aggregation=latest",), last_rounds, becomes({0, 1}, {1})),
    Knob("aggregation", ("aggregation=window",), last_rounds, becomes({0, 1, 2}, {1, 2}), base=THREE),
    Knob("window", ("window=1",), last_rounds, becomes({0, 1}, {1}), base=("aggregation=window",)),
    Knob(
        "max_grad_norm",
        ("max_grad_norm=0.01",),
        lambda run: round(max(step.grad_norm for step in run.steps), 4),
        becomes(1.0, 0.01),
    ),
    Knob("max_grad_norm", ("max_grad_norm=null",), lambda run: max(s.grad_norm for s in run.steps) > 1.01),
    Knob("rounds.num_rounds", THREE, lambda run: len(run.rounds), becomes(2, 3)),
    Knob(
        "rounds.labels",
        ("rounds.labels=[24,60]",),
        lambda run: [sum(one.num_labels for one in episodes) // 24 for episodes in run.rounds],
        lambda before, after: before[1] < 2 <= after[1],
    ),
    Knob(
        "rounds.tasks",
        ("rounds.tasks=5",),
        lambda run: [len(one) for one in run.rounds],
        becomes([3, 3], [5, 5]),
        base=PASSES,
    ),
    Knob("rounds.steps", ("rounds.steps=[1,3]",), steps, becomes([2, 2], [1, 3])),
    Knob(
        "rounds.epochs_per_round",
        ("rounds.epochs_per_round=2",),
        steps,
        becomes([1, 2], [1, 1, 2, 2]),
        base=PASSES,
    ),
    Knob(
        "rounds.batch_size",
        ("rounds.batch_size=2",),
        lambda run: {len(s.episodes) for s in run.steps},
        becomes({4}, {2}),
    ),
    Knob("rounds.max_tree_tokens", ("rounds.max_tree_tokens=40",), lambda run: max(s.longest_row for s in run.steps)),
    Knob("rounds.max_tokens", ("rounds.max_tokens=80",), lambda run: max(s.num_micro_batches for s in run.steps)),
    Knob(
        "rollout.episodes_per_task",
        ("rollout.episodes_per_task=3",),
        lambda run: {(len(ids), len(set(ids))) for ids in tasks(run)},
        becomes({(3, 3)}, {(9, 3)}),
        base=PASSES,
    ),
    Knob(
        "rollout.temperature",
        ("rollout.temperature=0.7",),
        sampled("collect", "temperature"),
        becomes({1.0}, {0.7}),
        base=HALF,
    ),
    Knob("rollout.top_p", ("rollout.top_p=0.9",), sampled("collect", "top_p"), becomes({1.0}, {0.9}), base=HALF),
    Knob("rollout.top_p", ("rollout.top_p=0.9",), sampled("evaluate", "top_p"), becomes({1.0}, {1.0}), base=HALF),
    Knob(
        "rollout.max_new_tokens",
        ("rollout.max_new_tokens=5",),
        sampled("collect", "max_new_tokens"),
        becomes({8}, {5}),
        base=HALF,
    ),
    Knob(
        "rollout.max_observation_chars",
        ("rollout.max_observation_chars=6",),
        lambda run: run.run.collector.runner.max_observation_chars,
        becomes(None, 6),
    ),
    Knob(
        "rollout.concurrency",
        ("rollout.concurrency=2",),
        lambda run: run.most_at_once["collect"],
        becomes(4, 2),
        base=(*STUDENT, "rounds.labels=200"),
    ),
    Knob(
        "rollout.watchdog_s",
        ("rollout.watchdog_s=7",),
        lambda run: run.run.collector.runner.watchdog.patience_s,
        becomes(120, 7),
    ),
    Knob(
        "rollout.max_attempts",
        ("rollout.max_attempts=5",),
        lambda run: run.run.collector.runner.max_attempts,
        becomes(2, 5),
    ),
    Knob(
        "teacher_budget.tokens_per_round",
        ("teacher_budget.tokens_per_round=10",),
        spent,
        becomes(None, "tokens_per_round"),
    ),
    Knob(
        "teacher_budget.tokens_per_run", ("teacher_budget.tokens_per_run=10",), spent, becomes(None, "tokens_per_run")
    ),
    Knob(
        "teacher_budget.cost_per_round",
        ("teacher_budget.cost_per_round=1",),
        spent,
        becomes(None, "cost_per_round"),
        base=("teacher_budget.prompt_price=5",),
    ),
    Knob(
        "teacher_budget.cost_per_run",
        ("teacher_budget.cost_per_run=1",),
        spent,
        becomes(None, "cost_per_run"),
        base=("teacher_budget.prompt_price=5",),
    ),
    Knob("teacher_budget.prompt_price", ("teacher_budget.prompt_price=2",), cost, becomes(0, 2)),
    Knob("teacher_budget.response_price", ("teacher_budget.response_price=3",), cost, becomes(0, 3)),
    Knob(
        "evaluation.tasks",
        ("evaluation.tasks=5",),
        lambda run: {len(one) for one in run.evaluations},
        becomes({2}, {5}),
    ),
    Knob(
        "evaluation.validation_tasks",
        ("evaluation.validation_tasks=3",),
        lambda run: {len(one) for one in run.validations},
        becomes({2}, {3}),
    ),
    Knob(
        "keep_students",
        ("keep_students=all",),
        lambda run: sorted(path.name for path in run.folder.glob("student_rounds/*")),
        becomes([], ["000", "001"]),
    ),
    Knob(
        "evaluation.seed",
        ("evaluation.seed=7",),
        lambda run: {sampling.key.seed for at, sampling in run.samplings if at == "evaluate" and sampling.key},
        becomes({1000}, {7}),
    ),
    Knob(
        "evaluation.temperature",
        ("evaluation.temperature=0.5",),
        sampled("evaluate", "temperature"),
        becomes({0.0}, {0.5}),
    ),
    Knob(
        "evaluation.concurrency", ("evaluation.concurrency=1",), lambda run: run.most_at_once["evaluate"], becomes(2, 1)
    ),
    # Groups
    Knob(
        "mixing",
        ("mixing=student", "schedule=none"),
        lambda run: set("".join(chain(*actors(run)))),
        becomes({"s", "t"}, {"s"}),
    ),
    Knob(
        "mixing",
        ("method=sft", "labeler.turns=all"),
        lambda run: set("".join(chain(*actors(run)))),
        becomes({"s", "t"}, {"t"}),
    ),
    Knob(
        "mixing",
        ("method=dagger_switch",),
        lambda run: {turn.kappa is not None for one in chain(*run.rounds) for turn in one.turns},
        becomes({False}, {True}),
    ),
    Knob(
        "mixing",
        ("mixing=switch_teacher_first", "schedule=none"),
        lambda run: [one[:2] for one in chain(*actors(run))],
    ),
    Knob("mixing.t_max.step", ("mixing.t_max.step=20",), actors, base=("method=dagger_switch",)),
    Knob("mixing.t_max.start", ("mixing.t_max.start=20",), actors, base=("method=dagger_switch",)),
    Knob("mixing.t_max.cap", ("mixing.t_max.cap=1",), actors, base=("method=dagger_switch",)),
    Knob(
        "mixing.teacher_first",
        ("mixing.teacher_first=true",),
        actors,
        base=("method=dagger_switch", "mixing.t_max.step=0", "mixing.t_max.start=9"),
    ),
    Knob("schedule.start", ("schedule.start=0.5",), betas),
    Knob("schedule.end", ("schedule.end=0.5",), betas),
    Knob("schedule.num_rounds", ("schedule.num_rounds=9",), betas),
    Knob("schedule.warmup_rounds", ("schedule.warmup_rounds=1",), betas),
    Knob("schedule.floor", ("schedule.floor=0.7",), betas),
    *(
        Knob(
            "schedule", (f"schedule={name}",), betas, base=("rounds.num_rounds=5", "rounds.labels=8", "schedule=linear")
        )
        for name in ("constant", "exponential", "cosine", "inverse_sigmoid", "step", "paper", "first_round")
    ),
    Knob(
        "labeler.turns",
        ("labeler.turns=student",),
        labelled,
        becomes({Actor.STUDENT, Actor.TEACHER}, {Actor.STUDENT}),
        base=HALF,
    ),
    Knob(
        "labeler.turns",
        ("labeler.turns=teacher",),
        labelled,
        becomes({Actor.STUDENT, Actor.TEACHER}, {Actor.TEACHER}),
        base=HALF,
    ),
    Knob(
        "filter.keep",
        ("filter.keep=solved",),
        endings,
        becomes({True, False}, {True}),
        base=(*HALF, "rounds.labels=400", "rounds.steps=9"),
    ),
    Knob(
        "filter.warmup_rounds",
        ("filter.warmup_rounds=3",),
        endings,
        becomes({True, False}, {True}),
        base=(*HALF, "filter.keep=warmup_solved", "rounds.labels=400", "rounds.steps=9"),
    ),
    Knob(
        "filter.keep_cut",
        ("filter.keep_cut=false",),
        lambda run: {keeps(0, StopReason.TIMEOUT) for keeps in (run.run.collector.keeps, run.datamodule.keeps)},
        becomes({True}, {False}),
    ),
    Knob("loss.normalize", ("loss.normalize=turn",), lambda run: run.steps[0].weights),
    Knob("loss.normalize", ("loss.normalize=episode",), lambda run: run.steps[0].weights),
    Knob(
        "optimizer", ("optimizer=adam",), lambda run: type(optimizer(run)), becomes(torch.optim.AdamW, torch.optim.Adam)
    ),
    Knob("optimizer.lr", ("optimizer.lr=0.1",), lambda run: max(lrs(run)), lambda before, after: after > 9 * before),
    Knob(
        "optimizer.weight_decay",
        ("optimizer.weight_decay=0.9",),
        lambda run: optimizer(run).defaults["weight_decay"],
        becomes(0.01, 0.9),
    ),
    Knob(
        "optimizer.betas",
        ("optimizer.betas=[0.5,0.6]",),
        lambda run: tuple(optimizer(run).defaults["betas"]),
        becomes((0.9, 0.95), (0.5, 0.6)),
    ),
    Knob(
        "lr_scheduler",
        ("lr_scheduler=constant",),
        lambda run: len(set(lrs(run))),
        lambda before, after: before > after == 1,
    ),
    Knob("lr_scheduler.warmup_steps", ("lr_scheduler.warmup_steps=2",), lrs),
    Knob("lr_scheduler.decay_rate", ("lr_scheduler.decay_rate=0.9",), lrs, base=("lr_scheduler.warmup_steps=1",)),
    Knob(
        "teacher.error_rate",
        ("teacher.error_rate=0.9",),
        lambda run: [t.label_text for one in run.rounds[0] for t in one.turns],
    ),
    *(
        Knob(f"env.{key}", (f"env.{key}={value}",), observations)
        for key, value in [
            ("num_files", 4),
            ("num_bugs", 1),
            ("num_symptoms", 8),
            ("num_lines", 4),
            ("symptom_reliability", 0.1),
        ]
    ),
    Knob("env.max_turns", ("env.max_turns=4",), longest, lambda before, after: before > 4 == after, base=STUDENT),
    Knob("student.hidden_size", ("student.hidden_size=32",), shapes),
    Knob("student.num_layers", ("student.num_layers=2",), shapes),
    Knob(
        "student.num_heads",
        ("student.num_heads=4",),
        lambda run: run.module.model.config.num_attention_heads,
        becomes(2, 4),
    ),
    Knob("student.intermediate_size", ("student.intermediate_size=32",), shapes),
    Knob(
        "student.max_context_tokens",
        ("student.max_context_tokens=60",),
        lambda run: {one.stop_reason for one in run.rounds[0]},
        base=STUDENT,
    ),
    Knob(
        "student.finetuning",
        ("student.finetuning=lora",),
        lambda run: any("lora" in name for name in shapes(run)),
        becomes(False, True),
    ),
    Knob("student.lora.rank", ("student.lora.rank=2",), shapes, base=("student.finetuning=lora",)),
    Knob("callbacks.checkpoint_steps", ("callbacks.checkpoint_steps=1",), lambda run: run.num_checkpoints),
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Seen]]:
    """Give the run of these overrides; each is played once."""
    runs: dict[tuple[str, ...], Seen] = {}
    threads = torch.get_num_threads()

    def play(*overrides: str) -> Seen:
        if overrides not in runs:
            runs[overrides] = seen(tmp_path_factory.mktemp("run"), *overrides)
        return runs[overrides]

    yield play
    torch.set_num_threads(threads)


@pytest.mark.parametrize("knob", KNOBS, ids=str)
def test_a_knob_changes_what_is_done(played: Callable[..., Seen], knob: Knob) -> None:
    before, after = (knob.look(played(*knob.base, *change)) for change in ((), knob.change))
    assert knob.expected(before, after), f"{before} with {knob.base}, {after} with {knob.change}"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rollout.turn_timeout_s=1e-6", "a turn took more than"),
        ("rollout.episode_timeout_s=1e-6", "the episode took more than"),
        ("rollout.round_timeout_s=1e-6", "rollout.round_timeout_s is over"),
    ],
)
def test_a_deadline_that_nothing_meets_ends_the_run(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        seen(tmp_path, *STUDENT, override)


@pytest.mark.filterwarnings("ignore:Total length of:UserWarning")  # Lightning on the empty loader that ends a run early
def test_a_success_rate_that_is_reached_ends_the_run(tmp_path: Path) -> None:
    assert len(seen(tmp_path, "evaluation.stop_at_success=0.0").rounds) == 1


def test_a_round_closes_with_the_episode_that_fills_its_budget(played: Callable[..., Seen]) -> None:
    for episodes in played("rounds.labels=[30,30]").rounds:
        labels = [one.num_labels for one in episodes]
        assert sum(labels[:-1]) < 30 <= sum(labels)
    exact = played(*STUDENT, "rounds.labels=48")
    assert [[one.num_labels for one in episodes] for episodes in exact.rounds] == [[24, 24]] * 2


def test_an_evaluation_is_of_the_student_that_was_just_trained_alone_on_other_tasks(
    played: Callable[..., Seen],
) -> None:
    run = played()
    splits = [{one.task_id for one in chain(*rounds)} for rounds in (run.evaluations, run.validations)]
    assert splits[0] == {task.id for task in run.run.world.tasks("heldout")[:2]}
    assert splits[1] == {task.id for task in run.run.world.tasks("validation")[:2]}
    for round_index, episodes in [*enumerate(run.evaluations), *enumerate(run.validations)]:
        turns = [turn for one in episodes for turn in one.turns]
        assert {turn.policy_version for turn in turns} == {round_index + 1}
        assert {turn.actor for turn in turns} == {Actor.STUDENT}
        assert {turn.label_ids for turn in turns} == {None}
        assert {
            turn.policy_version for one in run.rounds[round_index] for turn in one.turns if turn.actor is Actor.STUDENT
        } <= {round_index}
    assert next(phase for phase, version in run.loads if version == 2) == "train", "before the second evaluation begins"
    assert [version for _, version in run.loads] == [0, 1, 1, 2], "before each collection and before each evaluation"


def test_the_learning_rate_is_stepped_to_the_end_of_the_run_and_no_further(played: Callable[..., Seen]) -> None:
    """Passes over a union grow with the rounds; the schedule knows them all from the start."""
    for overrides in ((), (*THREE, *PASSES), (*PASSES, "aggregation=latest"), (*PASSES, "rounds.epochs_per_round=2")):
        rates = lrs(played(*overrides, "lr_scheduler.warmup_steps=1", "lr_scheduler.decay_rate=1.0"))
        assert rates == sorted(rates, reverse=True)
        assert len(set(rates)) == len(rates)
        assert rates[-1] == pytest.approx(0.0, abs=1e-9)
        assert rates[-2] > 1e-4


def test_dropout_draws_anew_at_each_step_and_the_same_in_a_second_run(
    played: Callable[..., Seen], tmp_path: Path
) -> None:
    draws = [step.draw for step in played().steps]
    assert len(set(draws)) == len(draws)
    assert draws == [step.draw for step in seen(tmp_path).steps]


ELSEWHERE = {
    "labeler.logprobs": "tests/cli/test_served.py: a served teacher's log-probabilities in the record",
    "labeler.num_top": "tests/cli/test_served.py: a served teacher's log-probabilities in the record",
    "sweep_name": "tests/cli/test_sweep.py: the folder of a sweep",
    "rollout.turn_timeout_s": "above",
    "rollout.episode_timeout_s": "above",
    "rollout.round_timeout_s": "above",
    "evaluation.stop_at_success": "above",
    "name": "the run's name",
}


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys of the plain values of conf/train.yaml."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif name != "defaults":
            yield f"{prefix}{name}"


def test_no_plain_value_of_a_run_is_without_a_row() -> None:
    own = OmegaConf.to_container(OmegaConf.load(Path(CONF_FOLDER, "train.yaml")))
    missing = set(leaves(own)) - {knob.key for knob in KNOBS} - set(ELSEWHERE)
    assert not missing
