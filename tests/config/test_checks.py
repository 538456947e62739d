"""Every config file composes and binds; a typo in any of them, or on the command line, is one clear sentence."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dagger_exp.config.checks import check, per_round
from dagger_exp.config.composing import compose_checked
from dagger_exp.config.mistakes import CONF_FOLDER, options, said_in_one_sentence
from dagger_exp.config.schema import register_schema
from dagger_exp.data.selection import AGGREGATIONS, NORMALIZATIONS
from dagger_exp.errors import ConfigError
from dagger_exp.rollout.demonstrations.formats import FORMATS

CONF = Path(CONF_FOLDER)
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "local"))
NEEDS = {
    **{f"scaffold={option}": ["env=pypi_bugs"] for option in options("scaffold")},
    **{f"sandbox={option}": ["env=pypi_bugs"] for option in options("sandbox")},
    "student=hf": ["student.path=somewhere"],
    "teacher=hf": ["teacher.path=somewhere"],
    "teacher=checkpoint": ["teacher.path=somewhere"],
    "teacher=openai": ["teacher.model=some"],
    "schedule=none": ["method=dagger_switch"],
    "mixing=teacher": ["method=sft"],
    "mixing=student": ["schedule=none"],
    "mixing=switch": ["method=dagger_switch"],
    "mixing=switch_teacher_first": ["schedule=none"],
    **{f"demonstrations={option}": ["demonstrations.files=FILE"] for option in FORMATS},
}
"""What an option cannot be without."""
FILES = [f"{group}={option}" for group in GROUPS for option in options(group)]
SCHEDULES = [option for option in options("schedule") if option != "none"]


@pytest.mark.parametrize("choice", FILES)
def test_every_option_of_every_group_composes_and_binds(choice: str) -> None:
    check(compose_checked("train", [choice, *NEEDS.get(choice, [])]))


@pytest.mark.parametrize(("command", "typed"), [("train", []), ("evaluate", ["student.init=RUN"]), ("collect", [])])
def test_every_command_has_a_legal_default(command: str, typed: list[str]) -> None:
    check(compose_checked(command, typed), command)


@pytest.mark.parametrize("method", options("method"))
def test_a_method_meets_every_schedule_or_says_why_not(method: str) -> None:
    for schedule in SCHEDULES:
        cfg = compose_checked("train", [f"method={method}", f"schedule={schedule}"])
        if method in ("dagger", "on_policy_labels"):
            check(cfg)
        else:
            with pytest.raises(ConfigError, match=r"add schedule=none"):
                check(cfg)


@cache
def method_alone(method: str) -> DictConfig:
    return compose_checked("train", [f"method={method}"])


@pytest.mark.parametrize(
    "bundle", [f"{group}={option}" for group in ("experiment", "sweep") for option in options(group)]
)
def test_a_method_is_the_same_inside_every_bundle(bundle: str) -> None:
    for method in options("method"):
        inside, alone = compose_checked("train", [bundle, f"method={method}"]), method_alone(method)
        assert inside.name.startswith(method)
        if method != "dagger":  # whose schedule a bundle may choose
            assert (inside.mixing, inside.schedule, inside.labeler) == (alone.mixing, alone.schedule, alone.labeler)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("seed=3", "dagger"),
        ("schedule=linear labeler.turns=all", "dagger"),
        ("schedule=constant", "dagger_schedule-constant"),
        ("schedule.floor=0 schedule.start=1", "dagger"),
        ("schedule.floor=0.2", "dagger_floor-0.2"),
        ("labeler.turns=student schedule.start=0.5", "dagger_turns-student_start-0.5"),
        ("method=on_policy_labels aggregation=latest", "on_policy_labels_aggregation-latest"),
        ("method=sft filter.keep=solved", "sft_keep-solved"),
        ("mixing=student schedule=none", "dagger_mixing-student_schedule-none"),
        ("method=dagger_switch mixing.t_max.step=4 loss.normalize=turn", "dagger_switch_normalize-turn_step-4"),
        ("sweep=labels", "dagger_schedule-constant"),
        ("experiment=qwen3_4b", "dagger_aggregation-latest"),
        ("schedule=step name=mine", "mine"),
    ],
)
def test_a_run_is_named_by_its_method_and_by_what_is_not_the_methods(typed: str, name: str) -> None:
    assert compose_checked("train", typed.split()).name == name


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_has_a_quick_version(experiment: str) -> None:
    check(compose_checked("train", [f"experiment={experiment}", "debug=default"]))


BAD = [
    ("rounds.num_round=3", "rounds.num_round is unknown; did you mean rounds.num_rounds?"),
    ("env.num_filez=1", "env.num_filez is unknown; did you mean env.num_files?"),
    ("shedule.floor=0.1", "shedule.floor is unknown; did you mean schedule.floor?"),
    ("schedule.strat=1", "schedule.strat is unknown; did you mean schedule.start?"),
    ("+rounds.task=3", "rounds.task is unknown; did you mean rounds.tasks?"),
    ("+seeed=3", "seeed is unknown; did you mean seed?"),
    ("+student.hiden_size=3", "student.hiden_size is unknown; did you mean student.hidden_size?"),
    ("student.tokenizer=null", "student.tokenizer is null; it must be text."),
    ("schedule=lnear", "schedule=lnear does not exist; did you mean schedule=linear? choose one of constant, "),
    ("env=null", "env=null is no option of env; choose one of pypi_bugs, "),
    ("rounds.num_rounds=abc", "rounds.num_rounds is 'abc'; it must be a whole number."),
    ("schedule.start=abc", "schedule.start is 'abc'; it must be a number."),
    ("optimizer.lr=abc", "optimizer.lr is 'abc'; it must be a number."),
    (
        "rounds=3",
        "rounds holds num_rounds, labels, tasks, steps, epochs_per_round, batch_size, max_tree_tokens, max_tokens; ",
    ),
    ("seed=null", "seed cannot be null; give it a value."),
    ("~seed", "seed has no value; give it, as in seed=VALUE."),
    ("student=hf", "student.path has no value; give it, as in student.path=VALUE."),
    ("seed=1,2", "seed=1,2 holds several values; add -m to run one after the other, or write a list as [1,2]."),
    ("seed==3", "'seed==3' cannot be read; write seed=3."),
    ("seed", "'seed' is no override; write KEY=VALUE, as in seed=3."),
    ("student.init=/a=b", "'student.init=/a=b' cannot be read; quote a value that holds any of "),
    ("paths.output_folder=~/x", "'paths.output_folder=~/x' cannot be read: ~ is not expanded; write paths.output_f"),
    ("rounds.num_rounds=${rounds.nope}", "rounds.num_rounds: Interpolation key 'rounds.nope' not found."),
    ("schedule.end=${rounds.nope}", "schedule.end: Interpolation key 'rounds.nope' not found."),
    ("name=${oc.env:NO_SUCH_NAME}", "name: KeyError raised while resolving interpolation: "),
    ("mixing=student", "mixing=student has no beta, but a schedule is set; add schedule=none or keep mixing=turn."),
    ("mixing=switch", "mixing=switch is not method=dagger; choose method=dagger_switch, and leave out mixing and "),
    (
        "mixing=teacher schedule=none",
        "mixing=teacher is not method=dagger; choose method=sft, and leave out mixing and",
    ),
    ("method=on_policy_labels mixing=teacher", "mixing=teacher is not method=on_policy_labels; choose method=sft, and"),
    ("schedule=none", "mixing=turn needs a beta; choose a schedule, as in schedule=linear."),
    (
        "method=sft mixing=turn",
        "mixing=turn is not method=sft; choose method=dagger, and leave out mixing and schedule.",
    ),
    (
        "method=sft labeler.turns=student",
        "the teacher acts at every turn, but labeler.turns=student labels the student's; use ",
    ),
    (
        "labeler.turns=none",
        "labeler.turns=none leaves nothing to train on; choose labeler.turns=all, or use dagger-collect.",
    ),
    ("rounds.tasks=3", "rounds.labels and rounds.tasks are both set; give one and add rounds.labels=null for tasks."),
    ("rounds.labels=null", "rounds.labels and rounds.tasks are both null; give one, as in rounds.labels=480."),
    ("rounds.epochs_per_round=2", "rounds.steps and rounds.epochs_per_round are both set; add rounds.steps=null "),
    ("rounds.steps=[1,2]", "rounds.steps has 2 numbers for rounds.num_rounds=5; give one per round, or a single "),
    ("rounds.labels=[1,2,3,4,a]", "rounds.labels is [1, 2, 3, 4, 'a']; it must be a positive whole number, or a "),
    ("rounds.labels=0", "rounds.labels is 0; it must be a positive whole number, or a list of them."),
    ("rounds.labels=1.5", "rounds.labels is 1.5; it must be a positive whole number, or a list of them."),
    ("rounds.num_rounds=0", "rounds.num_rounds is 0; it must be at least 1."),
    ("rounds.batch_size=0", "rounds.batch_size is 0; it must be at least 1."),
    ("rollout.concurrency=-1", "rollout.concurrency is -1; it must be at least 1."),
    ("teacher_budget.cost_per_run=0.001", "teacher_budget.cost_per_run limits nothing while both prices are 0; set "),
    ("rollout.max_new_tokens=0", "rollout.max_new_tokens is 0; it must be at least 1."),
    ("rollout.max_new_tokens=1024", "rollout.max_new_tokens=1024 leaves no room for a prompt in student.max_context"),
    ("rollout.temperature=nan", "rollout.temperature is nan; it must be at least 0."),
    ("rollout.top_p=0", "rollout.top_p is 0.0; it must be above 0 and at most 1."),
    ("evaluation.tasks=-1", "evaluation.tasks is -1; it must be at least 1."),
    ("evaluation.validation_tasks=-1", "evaluation.validation_tasks is -1; it must be at least 0."),
    ("keep_students=some", "keep_students is some; it must be one of all, best, last."),
    (
        "evaluation.stop_at_success=0.9 evaluation.validation_tasks=0",
        "evaluation.stop_at_success looks at validation tasks, and evaluation.validation_tasks is 0; raise it.",
    ),
    (
        "keep_students=best evaluation.validation_tasks=0",
        "keep_students=best looks at validation tasks, and evaluation.validation_tasks is 0; raise it.",
    ),
    ("evaluation.stop_at_success=2", "evaluation.stop_at_success is 2.0; it must be between 0 and 1."),
    ("callbacks.checkpoint_steps=0", "callbacks.checkpoint_steps is 0; it must be at least 1."),
    (
        "labeler.turns=student",
        "labeler.turns=student finds no turn of the student in round 0; lower schedule.start, or ",
    ),
    ("method=dagger_switch mixing.teacher_first=true", "mixing.teacher_first with a growing mixing.t_max leaves "),
    ("+trainer.enable_progress_bar=true", "trainer.enable_progress_bar is given by the run itself; remove it."),
    ("filter.warmup_round=2", "filter.warmup_round is unknown; did you mean filter.warmup_rounds?"),
    ("filter=solved", "filter holds keep, warmup_rounds, keep_cut; set one, as in filter.keep=solved."),
    ("labeler=student", "labeler holds turns, logprobs, num_top; set one, as in labeler.turns=student."),
    ("scaffold=tools", "this env runs no commands and takes no scaffold; remove scaffold=..., or choose another env."),
    ("sandbox=docker", "this env runs no commands and takes no sandbox; remove sandbox=..., or choose another env."),
    (
        "teacher=openai teacher.model=x teacher.endpoint.address=http://me:secret@host",
        "teacher.endpoint.address holds a name, a password or a query, which is not shown; leave it out",
    ),
    ("engine=vllm engine.addresses=http://host:1", "engine.addresses is a list; write it as [http://HOST:PORT]."),
    (
        "engine=vllm engine.addresses=[http://host:1,http://me:secret@host:2]",
        "engine.addresses holds a name, a password or a query, which is not shown; leave it out",
    ),
    (
        "teacher=openai teacher.model=x teacher.endpoint.api_key_env=sk-1",
        "teacher.endpoint.api_key_env is the name of ",
    ),
    (
        "engine=vllm +engine.server.environment.VLLM_API_KEY=sk-1",
        "engine.server.environment has VLLM_API_KEY, and what ",
    ),
    (
        "engine=vllm engine.server.arguments=[--api-key,sk-1]",
        "engine.server.arguments has --api-key, and what a config",
    ),
    (
        "engine=vllm engine.server.arguments=['--api-key=sk-1']",
        "engine.server.arguments has --api-key, and what a config",
    ),
    ("teacher=openai teacher.model=x +teacher.request.api_key=sk-1", "teacher.request has api_key"),
    ("aggregation=all", "aggregation is all; it must be one of union, latest, window."),
    ("loss.normalize=x", "loss.normalize is x; it must be one of token, turn, episode."),
]


@pytest.mark.parametrize(("typed", "sentence"), BAD)
def test_a_mistake_is_one_sentence_that_names_the_key_and_the_mend(typed: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(compose_checked("train", typed.split()))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        ("evaluate", "student.init=RUN rounds.num_rounds=1"),
        ("evaluate", "student.init=RUN labeler.turns=none"),
        ("evaluate", "student.init=RUN teacher_budget.cost_per_run=1"),
        ("collect", "teacher_budget.cost_per_round=1 teacher_budget.response_price=2"),
        ("collect", "rounds.num_rounds=1 rounds.labels=200"),
        ("collect", "labeler.turns=none rounds.labels=null rounds.tasks=3"),
        ("collect", "rounds.num_rounds=1 rounds.labels=2000 method=sft"),
    ],
)
def test_other_commands_do_not_trip_over_checks_of_the_training(command: str, typed: str) -> None:
    check(compose_checked(command, typed.split()), command)


def composed_with(folder: Path, *overrides: str) -> Any:
    register_schema()
    search = f"hydra.searchpath=[file://{folder}]"
    with said_in_one_sentence("train", overrides), initialize_config_dir(CONF_FOLDER, version_base="1.3"):
        return compose("train", [*overrides, search])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rounds:\n  num_ronuds: 2", "rounds.num_ronuds is unknown; did you mean rounds.num_rounds?"),
        ("rounds:\n  num_rounds: abc", "rounds.num_rounds is 'abc'; it must be a whole number."),
        ("raunds:\n  num_rounds: 2", "raunds is unknown; did you mean rounds?"),
        ("schedule:\n  strat: 0.5", "schedule.strat is unknown; did you mean schedule.start?"),
        (
            "defaults: [override /mixing: switch, override /schedule: none]\nmixing:\n  t_max:\n    stat: 1",
            "mixing.t_max.stat is unknown; did you mean mixing.t_max.start?",
        ),
        ("env:\n  _target_: dagger_exp.envs.repo_repair.RepoRepare", "env._target_ is dagger_exp.envs.repo_repair."),
    ],
)
def test_a_typo_in_an_experiment_file_is_found(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "typo.yaml").write_text(f"# @package _global_\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        check(composed_with(tmp_path, "experiment=typo"))
    assert str(caught.value).removeprefix("conf/experiment/typo.yaml: ").startswith(sentence)


def test_a_typo_inside_a_component_file_is_found(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "fast.yaml").write_text("_target_: torch.optim.AdamW\n_partial_: true\nlearning_rate: 1")
    with pytest.raises(ConfigError, match=r"optimizer\.learning_rate is unknown"):
        check(composed_with(tmp_path, "optimizer=fast"))


def test_a_file_for_this_machine_overrides_all_but_bundles(tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "default.yaml").write_text("# @package _global_\npaths:\n  output_folder: /scratch\n")
    assert composed_with(tmp_path).paths.output_folder == "/scratch"
    assert composed_with(tmp_path, "paths.output_folder=/mine").paths.output_folder == "/mine"


def test_one_number_stands_for_all_rounds() -> None:
    cfg = compose_checked("train", ["rounds.steps=7", "rounds.num_rounds=2"])
    assert per_round(cfg, "steps") == [7, 7]
    assert per_round(compose_checked("train", ["rounds.steps=null"]), "steps") is None


def test_the_schema_knows_the_choices_of_the_code() -> None:
    with pytest.raises(ConfigError, match=", ".join(AGGREGATIONS)):
        check(compose_checked("train", ["aggregation=x"]))
    with pytest.raises(ConfigError, match=", ".join(NORMALIZATIONS)):
        check(compose_checked("train", ["loss.normalize=x"]))
