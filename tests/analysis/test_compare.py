"""Groups, their means and intervals, and paired differences, against figures worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dagger_exp.analysis.curves import curve, estimate, final_point
from dagger_exp.analysis.failures import RATES
from dagger_exp.analysis.groups import Comparison, Group, compare, notes
from dagger_exp.analysis.intervals import bootstrap_interval, holm, mcnemar, t_margin
from dagger_exp.analysis.load import Row, Run
from dagger_exp.analysis.pairs import Evaluation, difference_of, differences
from dagger_exp.analysis.workspace import build_workspace, grouping
from dagger_exp.errors import UserError
from dagger_exp.store.compaction import compact
from dagger_exp.store.schema import to_table
from dagger_exp.types import Episode, StopReason

LINEAR = {"_target_": "dagger_exp.schedules.Linear", "start": 1.0, "end": 0.0}
EXPONENTIAL = {"_target_": "dagger_exp.schedules.Exponential", "start": 1.0, "end": 0.0625}
CONFIG: dict[str, Any] = {
    "name": "dagger",
    "schedule": LINEAR,
    "env": {"_target_": "dagger_exp.envs.repo_repair.RepoRepair", "num_bugs": 3},
    "evaluation": {"tasks": 200, "seed": 1000, "temperature": 0.0},
    "logger": {"group": None},
}
t_of_one: Any = stats.ttest_1samp
SOLVED, UNSOLVED = StopReason.SOLVED, StopReason.UNSOLVED


def round_row(index: int, success_rate: float, **more: float) -> Row:
    return {
        "round": index,
        "round/beta": 1.0 / (index + 1),
        "rollout/num_labels": 100,
        "rollout/num_teacher_queries": 80,
        "rollout/student_turn_rate": 0.5,
        "round/num_tokens": 1000,
        "round/loss": 1.0,
        "round/collect_s": 1.0,
        "round/train_s": 2.0,
        "round/evaluate_s": 0.5,
        "eval/success_rate": success_rate,
        "eval/success_low": success_rate / 2,
        "eval/success_high": 1.0,
    } | more


def a_run(seed: int = 0, *success_rates: float, state: str = "finished", **changes: Any) -> Run:
    rates = success_rates or (0.25, 0.5)
    rows = tuple(round_row(index, rate) for index, rate in enumerate(rates))
    name = f"run_{seed}"
    return Run(
        name=name, place=f"runs/{name}", state=state, error="", config=CONFIG | {"seed": seed} | changes, rows=rows
    )


def only(runs: list[Run]) -> Comparison:
    comparisons, _ = compare(runs)
    assert len(comparisons) == 1
    return comparisons[0]


def labels_of(*changes: Mapping[str, Any]) -> list[str]:
    return [group.label for group in only([a_run(**change) for change in changes]).groups]


def test_runs_that_differ_in_what_changes_no_outcome_are_one_group() -> None:
    served = {"endpoint": {"_target_": "Endpoint"}, "addresses": ["http://a"]}
    elsewhere = {"endpoint": {"_target_": "Endpoint", "timeout_s": 7}, "addresses": ["http://b"]}
    changes: dict[str, Any] = {
        "rollout": {"concurrency": 64, "watchdog_s": 9},
        "teacher_budget": {"tokens_per_run": 10**9},
    }
    changes |= {"logger": {"group": "a"}, "paths": {"output_folder": "b"}, "sweep_name": "c", "engine": elsewhere}
    comparison = only([a_run(1, engine=served, rollout={"concurrency": 8}), a_run(0, **changes)])
    assert [[run.config["seed"] for run in group.runs] for group in comparison.groups] == [[0, 1]]


def test_another_component_is_labelled_by_its_class_and_not_by_the_values_it_brings() -> None:
    assert labels_of({"schedule": LINEAR}, {"schedule": EXPONENTIAL}) == ["schedule=linear", "schedule=exponential"]


def test_a_value_is_labelled_by_its_key() -> None:
    assert labels_of({"schedule": LINEAR}, {"schedule": LINEAR | {"start": 0.5}}) == [
        "schedule.start=1.0",
        "schedule.start=0.5",
    ]


def test_a_component_and_a_value_in_it_are_both_in_the_label() -> None:
    found = labels_of({"schedule": LINEAR}, {"schedule": LINEAR | {"start": 0.5}}, {"schedule": {"_target_": None}})
    assert found == ["schedule=linear schedule.start=1.0", "schedule=linear schedule.start=0.5", "schedule=none"]


def test_a_component_that_another_brings_with_it_is_not_named() -> None:
    turn, switch = ({"_target_": f"dagger_exp.policies.mixture.{kind}Mixture"} for kind in ("Turn", "Switch"))
    comparison = only([a_run(mixing=turn), a_run(mixing=switch | {"t_max": {"_target_": "schedules.Ramp", "cap": 24}})])
    assert comparison.differing == ["mixing"]
    assert [group.label for group in comparison.groups] == ["mixing=turn_mixture", "mixing=switch_mixture"]


def test_a_key_that_others_imply_is_not_in_the_label() -> None:
    constant = {"_target_": "dagger_exp.schedules.Constant"}
    settings = [{"schedule": constant | {"start": beta, "end": beta}} for beta in (0.5, 0.25)]
    assert labels_of(*settings) == ["schedule.start=0.5", "schedule.start=0.25"]


def test_names_that_tell_the_groups_apart_are_the_labels() -> None:
    comparison = only([a_run(), a_run(name="sft", schedule={"_target_": None})])
    assert [group.label for group in comparison.groups] == ["dagger", "sft"]
    assert comparison.differing == ["schedule"]


def test_runs_of_one_method_are_labelled_by_what_differs_though_their_names_say_it_too() -> None:
    runs = [a_run(), a_run(name="dagger_schedule-exponential", schedule=EXPONENTIAL)]
    groups = only([replace(run, choices={"method": "dagger"}) for run in runs]).groups
    assert [group.label for group in groups] == ["schedule=linear", "schedule=exponential"]


def test_names_that_several_groups_share_are_followed_by_what_differs() -> None:
    found = labels_of({}, {"schedule": EXPONENTIAL}, {"name": "sft", "schedule": {"_target_": None}})
    assert found == ["dagger schedule=linear", "dagger schedule=exponential", "sft"]


def test_a_name_of_each_run_is_noise() -> None:
    assert len(only([a_run(0, name="first"), a_run(1, name="second")]).groups) == 1


def test_whole_numbers_of_wandb_are_the_same_values() -> None:
    assert len(only([a_run(0), a_run(1, schedule=LINEAR | {"start": 1, "end": 0})]).groups) == 1


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"env": CONFIG["env"] | {"num_bugs": 2}}, "env.num_bugs=2"),
        ({"evaluation": CONFIG["evaluation"] | {"tasks": 50}}, "evaluation.tasks=50"),
        ({"rollout": {"max_new_tokens": 4}}, "rollout.max_new_tokens=4"),
    ],
)
def test_runs_evaluated_otherwise_stand_in_another_comparison(changes: Mapping[str, Any], label: str) -> None:
    comparisons, _ = compare([a_run(0, **changes), a_run(0), a_run(1)])
    assert [len(part.groups[0].runs) for part in comparisons] == [2, 1]  # the biggest first
    assert comparisons[1].conditions == label


def test_the_same_config_and_seed_counts_once_and_is_named() -> None:
    again = replace(a_run(0), place="elsewhere")
    comparisons, complaints = compare([a_run(0), again])
    assert [run.place for run in comparisons[0].groups[0].runs] == ["runs/run_0"]
    assert complaints == ["elsewhere repeats runs/run_0 (same settings, same seed) and is left out."]


def test_of_the_same_config_and_seed_the_finished_run_counts() -> None:
    broken = replace(a_run(0, state="failed"), place="broken")
    assert [run.place for run in only([broken, a_run(0)]).groups[0].runs] == ["runs/run_0"]


def test_unfinished_runs_are_named_and_in_no_final_figure() -> None:
    failed = replace(a_run(1, state="failed"), error="out of memory.")
    without_rate = replace(a_run(3), folder=Path("runs/run_3"), rows=({"round": 0, "eval/num_failed": 9.0},))
    comparisons, complaints = compare([a_run(0), failed, a_run(2, 0.1, state="running"), without_rate])
    group = comparisons[0].groups[0]
    assert (len(group.runs), len(group.left_out)) == (1, 3)
    repair = "infrastructure failed 9 of its evaluation episodes; resume=runs/run_3 plays them again"
    why = f"runs/run_3 has no success rate in its last round ({repair})"
    assert complaints == [
        "runs/run_1 is failed (out of memory) and is left out of the final figures.",
        "runs/run_2 is still running (1 rounds are over) and is left out of the final figures.",
        f"{why} and is left out of the final figures.",
    ]


def test_the_interval_over_runs_is_that_of_student() -> None:
    # Mean 0.6, standard deviation 0.1, standard error 0.1 / sqrt(3); the 0.975 quantile of t with 2 degrees is 4.3027.
    found = estimate("loss", [{"round/loss": value} for value in (0.5, 0.6, 0.7)])
    assert found.mean == pytest.approx(0.6)
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / np.sqrt(3), abs=1e-6)


def test_the_interval_of_a_single_run_is_that_of_its_evaluation() -> None:
    assert estimate("success_rate", [round_row(0, 0.5)]) == (0.5, 0.25, 1.0)


def test_an_interval_of_rates_stays_between_0_and_1() -> None:
    found = estimate("success_rate", [round_row(0, 0.9), round_row(0, 1.0)])
    assert (found.low, found.high) == (pytest.approx(0.95 - 12.7062 * 0.05, abs=1e-4), 1.0)
    assert np.isnan(estimate("student_turn_rate", [round_row(0, 0.9)]).high)


def test_a_curve_sums_what_was_spent_and_averages_over_the_runs_of_each_round() -> None:
    group = only([a_run(0, 0.2, 0.4), a_run(1, 0.4)]).groups[0]
    first, second = curve(group)
    assert (first.num_runs, second.num_runs) == (2, 1)
    assert first.metrics["success_rate"].mean == pytest.approx(0.3)
    assert second.spent == {"labels": 200, "teacher_queries": 160, "tokens": 2000, "seconds": 7.0}
    assert second.metrics["beta"].mean == 0.5


def test_the_final_figure_is_of_the_last_round_of_each_run() -> None:
    point = final_point([a_run(0, 0.2, 0.4), a_run(1, 0.6)])
    assert point.metrics["success_rate"].mean == pytest.approx(0.5)
    assert point.spent["labels"] == 150


def test_a_group_without_a_finished_run_has_a_curve_all_the_same() -> None:
    assert len(curve(only([a_run(0, 0.1, state="running")]).groups[0])) == 1


def test_mcnemar_is_the_exact_test_of_the_pairs_that_differ() -> None:
    table = np.array([[1] * 8 + [-1] * 2 + [0] * 90])
    assert mcnemar(table) == pytest.approx(0.109375)  # 2 * (1 + 10 + 45) / 2 ** 10
    assert mcnemar(table) == pytest.approx(stats.binomtest(8, 10).pvalue)
    assert mcnemar(np.zeros((1, 5))) == 1.0


def by_seed(**solved: str) -> dict[str, Evaluation]:
    """Return runs by seed; of each task `+` says solved, `-` unsolved, and `?` that infrastructure failed."""
    values = {"+": 1.0, "-": 0.0, "?": np.nan}
    return {
        seed: Evaluation(outcomes.count("+") / len(outcomes), {str(task): values[o] for task, o in enumerate(outcomes)})
        for seed, outcomes in solved.items()
    }


def test_a_difference_is_of_the_same_seeds_and_tasks_and_without_failures_of_infrastructure() -> None:
    found = difference_of("group", by_seed(a="++-+", b="++++", other="----"), by_seed(a="--?+", b="+-++"))
    assert (found.num_seeds, found.num_pairs, found.num_dropped) == (2, 7, 1)
    assert found.difference == pytest.approx((2 / 3 + 1 / 4) / 2)
    assert found.margin == pytest.approx(12.7062 * (2 / 3 - 1 / 4) / 2, rel=1e-4)  # t with one degree of freedom
    assert found.low < found.difference < found.high
    assert found.p_value == pytest.approx(t_of_one([2 / 3, 1 / 4], 0).pvalue)


def test_a_single_seed_has_the_test_over_its_tasks_and_no_interval_over_seeds() -> None:
    found = difference_of("group", by_seed(a="++++++"), by_seed(a="------"))
    assert found.p_value == 2 / 2**6
    assert np.isnan(found.margin)


def test_groups_without_a_common_seed_are_compared_unpaired() -> None:
    ours, theirs = by_seed(a="++++", b="+++-", c="++--"), by_seed(d="+---", e="----")
    found = difference_of("group", ours, theirs)
    rates = [[run.success_rate for run in side.values()] for side in (ours, theirs)]
    welch: Any = stats.ttest_ind(*rates, equal_var=False)
    assert (found.num_seeds, found.num_pairs) == (0, 0)
    assert found.difference == pytest.approx(0.75 - 0.125)
    assert found.p_value == pytest.approx(welch.pvalue)
    interval = welch.confidence_interval(0.95)
    assert found.margin == pytest.approx((interval.high - interval.low) / 2)
    assert 0 < found.low < found.difference < found.high <= 1
    assert np.isnan(difference_of("group", by_seed(a="+"), by_seed(b="-")).margin)


def test_holm_multiplies_the_smallest_by_all_and_never_falls() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_of_three_seeds_that_differ_the_t_interval_covers_what_it_says_and_the_bootstrap_does_not() -> None:
    coins, trials = np.random.default_rng(0), 1000
    seeds = coins.normal(0.1, 0.05, size=(trials, 3))
    t_covers = [abs(gains.mean() - 0.1) <= t_margin(gains.tolist()) for gains in seeds]
    bounds = [bootstrap_interval(np.tile(gains[:, None], 5)) for gains in seeds]  # of tasks that do not differ
    bootstrap_covers = [low <= 0.1 <= high for low, high in bounds]
    assert 0.93 <= np.mean(t_covers) <= 0.97
    assert 0.70 <= np.mean(bootstrap_covers) <= 0.80


def test_the_bootstrap_of_one_seed_is_the_interval_of_its_tasks() -> None:
    gains = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=(1, 400), p=[0.1, 0.6, 0.3])
    low, high = bootstrap_interval(gains)
    margin = 1.96 * gains.std() / 20
    assert (low, high) == pytest.approx((gains.mean() - margin, gains.mean() + margin), abs=0.01)


def test_the_bootstrap_counts_that_seeds_differ() -> None:
    tasks = np.tile([1.0, 0.0], 100)
    low, high = bootstrap_interval(np.stack([tasks, tasks * 0, tasks, tasks * 0]))
    assert low == 0.0  # some resamples draw the two seeds without a gain only
    assert high > 0.4


def with_episodes(run: Run, folder: Path, solved: int, of: int = 10) -> Run:
    reasons = [SOLVED] * solved + [UNSOLVED] * (of - solved)
    episodes = [Episode(1, index, f"task-{index}", reason, ()) for index, reason in enumerate(reasons)]
    path = folder / "eval" / f"round_{len(run.rows) - 1:03d}.parquet"
    compact(path, (to_table(run.name, [episode]) for episode in episodes))
    return replace(run, folder=folder)


def test_paired_differences_read_the_last_evaluation_of_each_run(tmp_path: Path) -> None:
    better = with_episodes(a_run(0), tmp_path / "better", solved=8)
    worse = with_episodes(a_run(0, schedule=EXPONENTIAL), tmp_path / "worse", solved=3)
    groups = only([worse, better]).groups
    (found,), complaints = differences(groups, groups[0])
    assert found.holm == found.p_value  # there is one comparison
    assert (found.group, found.difference, found.num_pairs) == ("schedule=linear", pytest.approx(0.5), 10)
    assert found.p_value == 2 / 2**5
    assert complaints == []


def test_runs_without_episodes_are_named_and_compared_by_their_rates(tmp_path: Path) -> None:
    there = [with_episodes(a_run(seed, 0.8), tmp_path / str(seed), solved=8) for seed in (0, 1)]
    gone = [replace(a_run(seed, 0.5, schedule=EXPONENTIAL), folder=tmp_path / "gone") for seed in (0, 1)]
    on_wandb = [a_run(seed, 0.6 + seed / 10, schedule={"_target_": None}) for seed in (0, 1)]
    groups = only([*there, *gone, *on_wandb]).groups
    (first, second), complaints = differences(groups, groups[0])
    assert (first.difference, first.num_seeds, first.num_pairs) == (pytest.approx(-0.3), 2, 0)
    assert second.difference == pytest.approx(-0.15)
    assert second.p_value == pytest.approx(t_of_one([-0.2, -0.1], 0).pvalue)
    assert second.holm == second.p_value  # the first has none: its seeds do not differ
    assert np.isnan(second.low)
    assert len(complaints) == 2
    assert "gone" in complaints[0]
    assert "from W&B" in complaints[1]


def test_several_groups_are_corrected_by_holm() -> None:
    rates = {"Linear": (0.5, 0.6, 0.4), "Step": (0.7, 0.85, 0.58), "Cosine": (0.6, 0.68, 0.52)}
    schedules = {name: {"_target_": f"dagger_exp.schedules.{name}"} for name in rates}
    groups = only([a_run(s, r, schedule=schedules[n]) for n, some in rates.items() for s, r in enumerate(some)]).groups
    rows, _ = differences(groups, groups[0])
    small, large = sorted(row.p_value for row in rows if row.p_value is not None)
    assert [row.holm for row in rows] == pytest.approx([2 * small, max(2 * small, large)])


def test_a_comparison_names_mixed_commits_disjoint_seeds_and_few_seeds() -> None:
    runs = [replace(a_run(seed), commit="a" * 40) for seed in range(5)]
    comparison = only(runs)
    assert notes(comparison, comparison.groups[0]) == []
    runs += [replace(a_run(seed, schedule=EXPONENTIAL), commit="b" * 40) for seed in range(5, 8)]
    comparison = only(runs)
    assert notes(comparison, comparison.groups[0]) == [
        "schedule=exponential and schedule=linear share no seed: their difference is unpaired.",
        "The runs are of 2 commits: aaaaaaaaaa (schedule=linear: 5); bbbbbbbbbb (schedule=exponential: 3).",
        "Fewer than 5 seeds in 1 of 2 groups: a t-interval is wide then, and a bootstrap may be much too narrow.",
    ]


def two_groups() -> tuple[Group, ...]:
    return only([a_run(), a_run(schedule=EXPONENTIAL, aggregation="window")]).groups


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb-workspaces validates in pydantic's old way
def test_the_workspace_groups_by_what_differs_and_plots_against_the_round() -> None:
    pytest.importorskip("wandb_workspaces")
    comparison = Comparison(conditions="", groups=two_groups())
    assert grouping(comparison) == ["schedule._target_", "aggregation"]
    workspace: Any = build_workspace("team/project", comparison)
    assert (workspace.entity, workspace.project) == ("team", "project")
    assert [key.name for key in workspace.runset_settings.groupby] == grouping(comparison)
    panels = workspace.sections[0].panels
    assert [panel.y for panel in panels] == [
        ["eval/success_rate"],
        [f"eval/{name}" for name in RATES],
        ["round/beta"],
        ["rollout/student_turn_rate"],
        ["round/loss"],
    ]
    assert {panel.x for panel in panels} == {"round"}


def test_an_address_that_is_no_project_is_refused() -> None:
    with pytest.raises(UserError, match="write --wandb ENTITY/PROJECT"):
        build_workspace("project", Comparison(conditions="", groups=two_groups()))
