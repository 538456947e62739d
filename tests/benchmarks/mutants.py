"""Would the tests see it? Each mutant changes one line at a seam; the tests that should see it are run.

    python tests/benchmarks/mutants.py                    # all of them, half an hour on two cores
    python tests/benchmarks/mutants.py --only evaluation  # those whose name holds this word

A mutant is applied to a copy of the tree. It is dead when a test fails, and survives when all pass; a mutant whose line
is not in the tree any more is stale, and has to be written anew. The exit code is 1 when one survives or is stale.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
KNOBS = ("tests/knobs",)
ROLLOUT = ("tests/rollout/test_runner.py", "tests/rollout/test_labeler.py", "tests/rollout/test_limits.py")
TRAINING = ("tests/training/test_module.py", "tests/data")


@dataclass(frozen=True)
class Mutant:
    """A change of one place, and the tests that should fail with it."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...] = KNOBS
    match: str = ""
    """A word of the names of the tests that should see it, where the others take long."""


EVALUATORS = "dagger_exp/config/evaluators.py"
BUILD, ROUNDS = "dagger_exp/config/build.py", "dagger_exp/training/rounds.py"
MODULE, RUNNER = "dagger_exp/training/module.py", "dagger_exp/rollout/runner.py"
GOAL, COLLECTOR = "dagger_exp/rollout/goal.py", "dagger_exp/rollout/collector.py"

MUTANTS = [
    Mutant("aggregation is not passed on", BUILD, "        aggregation=cfg.aggregation,\n", "", match="aggregation"),
    Mutant("window is not passed on", BUILD, "        window=cfg.window,\n", "", match="window"),
    Mutant(
        "the data ignore the filter",
        BUILD,
        "keeps=EpisodeFilter(**cfg.filter),\n        batch_size",
        "keeps=EpisodeFilter(),\n        batch_size",
        match="filter",
    ),
    Mutant(
        "the collector ignores the filter",
        BUILD,
        "keeps=EpisodeFilter(**cfg.filter),\n        round",
        "keeps=EpisodeFilter(),\n        round",
        match="filter",
    ),
    Mutant("loss.normalize is not passed on", BUILD, "        normalize=cfg.loss.normalize,\n", "", match="normalize"),
    Mutant("rollout.top_p is not passed on", BUILD, "        top_p=cfg.rollout.top_p,\n", "", match="top_p"),
    Mutant(
        "rollout.temperature is not passed on",
        BUILD,
        "        temperature=cfg.rollout.temperature,\n",
        "",
        match="temperature",
    ),
    Mutant(
        "max_grad_norm is not passed on", BUILD, "        max_grad_norm=cfg.max_grad_norm,\n", "", match="grad_norm"
    ),
    Mutant(
        "evaluation.temperature is not passed on",
        EVALUATORS,
        "temperature=cfg.evaluation.temperature, ",
        "",
        match="temperature",
    ),
    Mutant("evaluation samples with the training's top_p", EVALUATORS, ", top_p=1.0)", ")", match="top_p"),
    Mutant(
        "evaluation with the training's mixing", EVALUATORS, "        mixing=StudentOnly(),\n", "", match="evaluation"
    ),
    Mutant(
        "evaluation asks for labels", EVALUATORS, '        labeler=Labeler(turns="none"),\n', "", match="evaluation"
    ),
    Mutant(
        "evaluation on training tasks",
        EVALUATORS,
        "tasks_of(run.world, split)",
        'tasks_of(run.world, "train")',
        match="evaluation",
    ),
    Mutant(
        "validation on held-out tasks",
        EVALUATORS,
        "tasks_of(run.world, split)",
        'tasks_of(run.world, "heldout")',
        match="evaluation",
    ),
    Mutant("evaluation.seed is the run's", EVALUATORS, "seed=cfg.evaluation.seed", "seed=cfg.seed", match="evaluation"),
    Mutant("all held-out tasks are validation's", EVALUATORS, "[:number]", "[:2]", match="evaluation"),
    Mutant(
        "a killed evaluation is played again whole",
        "dagger_exp/evaluation/evaluator.py",
        "            episodes = self.collector.play(",
        (
            "            store.discard(round_index, list(store.committed(round_index)))\n"
            "            episodes = self.collector.play("
        ),
        ("tests/evaluation",),
    ),
    Mutant(
        "an evaluation with failures is closed",
        "dagger_exp/evaluation/evaluator.py",
        "if has_rate(metrics, self.name):",
        "if True:",
        ("tests/evaluation", "tests/training/test_resume.py"),
    ),
    Mutant(
        "max_observation_chars is not passed on",
        BUILD,
        "        max_observation_chars=cfg.rollout.max_observation_chars,\n",
        "",
        match="max_observation",
    ),
    Mutant(
        "the teacher's budget is not passed on",
        BUILD,
        "TeacherBudget(**cfg.teacher_budget)",
        "TeacherBudget()",
        match="budget",
    ),
    Mutant("the labeler is not passed on", BUILD, "Labeler(**cfg.labeler)", "Labeler()", match="labeler"),
    Mutant(
        "the round's deadline is not passed on",
        BUILD,
        "        round_timeout_s=cfg.rollout.round_timeout_s,\n",
        "",
        match="deadline",
    ),
    Mutant(
        "stop_at_success is not passed on",
        BUILD,
        "        stop_at_success=cfg.evaluation.stop_at_success,\n",
        "",
        match="success",
    ),
    Mutant("num_threads is not set", BUILD, "    torch.set_num_threads(cfg.num_threads)\n", "", match="threads"),
    Mutant(
        "num_steps of a union is that of the latest round",
        BUILD,
        '"union": cfg.rounds.num_rounds',
        '"union": 1',
        match="learning_rate",
    ),
    Mutant(
        "num_steps forgets the passes",
        BUILD,
        "sum(per_pass) * cfg.rounds.epochs_per_round",
        "sum(per_pass)",
        match="learning_rate",
    ),
    Mutant("the lr scheduler is never stepped", MODULE, "        scheduler.step()\n", "", match="learning_rate"),
    Mutant(
        "gradients are not clipped",
        MODULE,
        "gradient_clip_val=self._max_norm()",
        "gradient_clip_val=None",
        match="grad_norm",
    ),
    Mutant("gradients are summed over steps", MODULE, "        optimizer.zero_grad()\n", "", TRAINING + KNOBS),
    Mutant(
        "dropout's seed is constant",
        ROUNDS,
        'f"process {trainer.global_rank}", trainer.global_step)',
        'f"process {trainer.global_rank}", 0)',
        match="dropout",
    ),
    Mutant(
        "evaluation with the version before",
        ROUNDS,
        "version=round_index + 1)",
        "version=round_index)",
        match="evaluation",
    ),
    Mutant(
        "no hand-over of weights before the evaluation",
        ROUNDS,
        "        self._hand_over(module, version=round_index + 1)\n",
        "",
        match="evaluation",
    ),
    Mutant(
        "no hand-over of weights before collecting",
        ROUNDS,
        "            self._hand_over(module, version=round_index)\n",
        "",
        ("tests/training/test_resume.py", *KNOBS),
    ),
    Mutant(
        "a label budget closes one episode late",
        GOAL,
        "while labels < (self.num_labels or 0):",
        "while labels <= (self.num_labels or 0):",
        ("tests/rollout/test_goal.py",),
    ),
    Mutant("a budget of labels does not count what is playing", GOAL, " - num_playing\n", "\n", ROLLOUT),
    Mutant("cut episodes are played again", GOAL, "(episode.num_labels > 0 and self.keeps(reason))", "False", ROLLOUT),
    Mutant(
        "failures are not played again on resume",
        COLLECTOR,
        "            self.store.discard(round_index, failed)\n",
        "            pass\n",
        ("tests/rollout/test_determinism.py",),
    ),
    Mutant(
        "the round's key is not the plan's seed",
        "dagger_exp/rollout/plan.py",
        "return task, Key(self.seed, round_index, task.id, episode_index)",
        "return task, Key(0, round_index, task.id, episode_index)",
        match="seed",
    ),
    Mutant(
        "beta is its opposite",
        "dagger_exp/policies/mixture.py",
        "coin < beta",
        "coin >= beta",
        ("tests/policies/test_mixture.py",),
    ),
    Mutant(
        "kappa is one turn late",
        "dagger_exp/policies/mixture.py",
        "key.turn_index < kappa",
        "key.turn_index <= kappa",
        ("tests/policies/test_mixture.py",),
    ),
    Mutant(
        "kappa is drawn anew at each turn",
        "dagger_exp/policies/mixture.py",
        'integer(key._replace(turn_index=0), "kappa"',
        'integer(key, "kappa"',
        ("tests/policies/test_mixture.py",),
    ),
    Mutant(
        "a failed label ends the episode",
        RUNNER,
        "        except LabelError as error:\n",
        "        except ZeroDivisionError as error:\n",
        ROLLOUT,
    ),
    Mutant(
        "an empty answer is not asked again",
        RUNNER,
        "            except EmptyAnswer:\n",
        "            except ZeroDivisionError:\n",
        ROLLOUT,
    ),
    Mutant(
        "an answer that is too long is kept",
        RUNNER,
        "> self.max_context_tokens:\n            raise LabelError(",
        "> 10**9:\n            raise LabelError(",
        ROLLOUT,
    ),
    Mutant(
        "an answer that failed costs nothing", RUNNER, "                self.budget.spend(error.usage)\n", "", ROLLOUT
    ),
    Mutant("queries are not counted", "dagger_exp/rollout/budget.py", "Usage(num_queries=1)", "Usage()", ROLLOUT),
    Mutant(
        "what an env raises ends the run",
        "dagger_exp/errors.py",
        "    except Exception as error:\n        trace",
        "    except ZeroDivisionError as error:\n        trace",
        ROLLOUT,
    ),
    Mutant(
        "the label is of the executed action",
        "dagger_exp/rollout/turns.py",
        "label_ids=label.token_ids if",
        "label_ids=action.token_ids if",
        ROLLOUT,
    ),
    Mutant(
        "sandbox failures are trained on",
        "dagger_exp/types.py",
        "StopReason.TIMEOUT, StopReason.TEACHER,",
        "StopReason.SANDBOX, StopReason.TIMEOUT, StopReason.TEACHER,",
        ("tests/data",),
    ),
    Mutant(
        "observations are trained on",
        "dagger_exp/data/prefix_tree.py",
        "zip(path[num_prompt:], row.weights, strict=True)",
        "zip(path[num_prompt - 1 :], row.weights, strict=False)",
        ("tests/data",),
    ),
    Mutant(
        "a label stays in the context of the next turn",
        "dagger_exp/data/selection.py",
        "prompt = [*prompt, *turn.response_ids]",
        "prompt = [*prompt, *(turn.label_ids or turn.response_ids)]",
        TRAINING,
    ),
    Mutant(
        "a token sees its sister branch",
        "dagger_exp/data/batches.py",
        "place[None, :, None] < self.subtree_end",
        "place[None, :, None] >= 0 * self.subtree_end",
        TRAINING,
    ),
    Mutant(
        "positions count through branches",
        "dagger_exp/data/prefix_tree.py",
        "position_ids=depth[order]",
        "position_ids=np.arange(len(order))",
        TRAINING,
    ),
    Mutant(
        "the loss is of the micro-batch",
        MODULE,
        "self.loss(micro_batch) / total_weight",
        "self.loss(micro_batch) / float(micro_batch.target_weights.sum())",
        TRAINING,
    ),
    Mutant(
        "targets are predicted by themselves",
        MODULE,
        "torch.unique(micro_batch.target_parents, return_inverse=True)",
        "torch.unique(micro_batch.target_parents + 1, return_inverse=True)",
        TRAINING,
    ),
    Mutant(
        "a resumed loader begins anew",
        "dagger_exp/data/loader.py",
        '        self.num_taken = state["num_taken"]\n',
        "        pass\n",
        ("tests/data", "tests/training/test_resume.py"),
    ),
    Mutant(
        "a batch repeats over its steps",
        "dagger_exp/data/loader.py",
        "self.first + step * self.batch_size, self.first + (step + 1)",
        "self.first, self.first + (1)",
        ("tests/data",),
    ),
    Mutant(
        "greedy sampling draws",
        "dagger_exp/protocols.py",
        "    temperature: float = 1.0\n    top_p: float = 1.0\n    key",
        "    temperature: float = 0.5\n    top_p: float = 1.0\n    key",
        ("tests/engines/test_hf.py",),
    ),
    Mutant(
        "failures of infrastructure count in the success rate",
        "dagger_exp/evaluation/metrics.py",
        "if not episode.stop_reason.is_infrastructure]",
        "]",
        ("tests/evaluation",),
    ),
]


def verdict(mutant: Mutant) -> str:
    """Return `dead`, `SURVIVES` or `STALE`."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "tree")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "docs", "*.png", "__pycache__"))
        path = copy / mutant.path
        text = path.read_text() if path.exists() else ""
        if text.count(mutant.old) != 1:
            return "STALE"
        path.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not kill and not slow"]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        chosen = [*mutant.tests, *(["-k", mutant.match] if mutant.match else [])]
        done = subprocess.run([*command, *chosen], cwd=copy, env=environment, capture_output=True, check=False)
        if done.returncode not in (0, 1):
            return f"BROKEN: {done.stdout.decode()[-500:]}{done.stderr.decode()[-500:]}"
    return "dead" if done.returncode else "SURVIVES"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a word of the mutants' names")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    begin, chosen = time.monotonic(), [one for one in MUTANTS if args.only in one.name]
    with ThreadPoolExecutor(args.workers) as pool:
        found = []
        for mutant, outcome in zip(chosen, pool.map(verdict, chosen), strict=True):
            found.append(outcome)
            print(f"{outcome:10} {mutant.name}", flush=True)
    alive = [outcome for outcome in found if outcome != "dead"]
    print(f"{len(alive)} of {len(chosen)} mutants survive or are stale, {time.monotonic() - begin:.0f} s")
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()
