"""The loop of DAgger, as a Lightning callback: collect, aggregate, train, evaluate, round after round.

Lightning asks for a round's loader between epochs; that is where the round is made sure of. `ensure_round` is
idempotent: after a kill it finds what is done and does the rest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import lightning
import torch

from dagger_exp.errors import ConfigError, StoreError
from dagger_exp.evaluation.evaluator import Evaluator
from dagger_exp.evaluation.metrics import check_rate, evaluation_metrics, has_rate
from dagger_exp.protocols import Engine, Mixing
from dagger_exp.rollout.collector import Collector
from dagger_exp.seeding import draw
from dagger_exp.store.files import VISIBLE_S
from dagger_exp.training.kept_students import KeptStudents
from dagger_exp.training.preemption import PREEMPTION, Preemption
from dagger_exp.training.progress import Progress
from dagger_exp.training.record import RunRecord, best_round
from dagger_exp.types import Episode, Key

POISONED_LOSS = 1.0
"""A student whose loss after round 0 is above this acts at random, and its states poison the later labels."""

TAIL_STEPS = 20
"""Steps at the end of a round over which its loss is averaged."""


class RoundCallback(lightning.Callback):
    """Runs the rounds around Lightning's epochs, and keeps the record of them.

    for i = 0, 1, ..., num_rounds - 1:
        D_i    <- episodes in which student and teacher act in turns, labelled    `ensure_collected`
        D      <- D and D_i                                                       the data module
        pi_i+1 <- the student, trained on D                                       Lightning
        how often does pi_i+1 succeed alone?                                      `ensure_evaluated`

    Args:
        collector: of training episodes.
        evaluators: of the student alone.
        mixing: the collector's, for the record.
        engines: those that serve the student's weights.
        record: rows, logs and files of the run.
        kept: students of rounds that are over.
        progress: who watches.
        num_rounds: rounds of the run.
        num_labels: label budget of each round, or None.
        num_episodes: episodes of each round, or None; exactly one of the two is given.
        stop_at_success: ends the run when the success rate on the validation tasks reaches this; None never.
        preemption: signals that may end the run.
    """

    def __init__(
        self,
        *,
        collector: Collector,
        evaluators: Sequence[Evaluator],
        mixing: Mixing,
        engines: Sequence[Engine],
        record: RunRecord,
        kept: KeptStudents,
        progress: Progress,
        num_rounds: int,
        num_labels: Sequence[int] | None = None,
        num_episodes: int | None = None,
        stop_at_success: float | None = None,
        preemption: Preemption = PREEMPTION,
    ) -> None:
        if (num_labels is None) == (num_episodes is None):
            raise ConfigError("give exactly one of rounds.labels and rounds.tasks.")
        self.collector, self.evaluators, self.mixing, self.engines = collector, list(evaluators), mixing, engines
        self.store = collector.store
        self.record, self.kept, self.progress = record, kept, progress
        self.num_rounds, self.num_labels, self.num_episodes = num_rounds, num_labels, num_episodes
        self.stop_at_success, self.preemption = stop_at_success, preemption
        collector.runner.watchdog.say = progress.warn
        self.losses: dict[int, list[float]] = {}
        self.seconds: dict[int, float] = {}
        self.num_tokens: dict[int, int] = {}
        self._mark: float | None = None
        self._learning_rate = 0.0

    def ensure_round(self, trainer: lightning.Trainer, module: lightning.LightningModule, round_index: int) -> bool:
        """Make sure that a round is collected and closed, and that the one before is evaluated.

        The first process does the work, and the others wait for it.

        Returns:
            False where there is nothing left to train on: the last round is over, or the student is good enough.
        """
        self.preemption.keep_listening()  # this is the first that Lightning calls once it has put in its own handlers
        over, failure = False, None
        if trainer.is_global_zero:
            try:
                self.store.claim()
                over = self._is_finished(module, round_index)
                if not over:
                    self.ensure_collected(module, round_index)
            except Exception as error:  # noqa: BLE001 - the processes that wait must hear of it, whatever it is
                failure = error
        over, has_failed = trainer.strategy.broadcast((over, failure is not None))
        if failure is not None:
            raise failure
        if has_failed:
            sys.exit(0)  # the first process says what happened, and ends with its code
        if not over:
            self._wait_until_visible(round_index)
        trainer.should_stop = trainer.should_stop or over
        self._mark = None
        return not over

    def _is_finished(self, module: lightning.LightningModule, round_index: int) -> bool:
        """Evaluate the round before this one; return whether it was the last, or is good enough."""
        is_good = round_index > 0 and self._is_good_enough(self.ensure_evaluated(module, round_index - 1))
        return is_good or round_index >= self.num_rounds

    def _wait_until_visible(self, round_index: int) -> None:
        """Wait for what another process has written: on a network disk it is not at once everywhere."""
        deadline = time.monotonic() + VISIBLE_S
        while not self.store.is_closed(round_index):
            if time.monotonic() > deadline:
                path = self.store.manifest_path(round_index)
                raise StoreError(f"{path} is not visible to all processes: set paths.output_folder to a shared disk.")
            time.sleep(0.1)

    def ensure_collected(self, module: lightning.LightningModule, round_index: int) -> None:
        """Collect what the store lacks, and close the round."""
        if not self.store.is_closed(round_index):
            self._hand_over(module, version=round_index)
            if self.collector.is_imported(round_index) and self.num_rounds > 1:
                self.collector.runner.teacher.check()  # the next round needs it, and would tell after hours
            budget = None if self.num_labels is None else self.num_labels[round_index]
            total = 0 if self.collector.is_imported(round_index) else budget or self.num_episodes or 0
            self.progress.begin("collect", round_index, total, beta=self._beta(round_index))
            episodes = self.collector.collect(
                round_index, num_labels=budget, num_episodes=self.num_episodes, on_episode=self._watch_collecting
            )
            self.record.log_samples(round_index, episodes, self._steps_until(round_index))
        reader = self.store.read(round_index)  # also of a round that was closed before a kill
        failed = [index for index, reason in enumerate(reader.stop_reasons) if reason.is_infrastructure]
        self.record.failures("collect", round_index, reader.episodes(failed))
        for engine in self.engines:
            engine.rest()

    def ensure_evaluated(self, module: lightning.LightningModule, round_index: int) -> dict[str, float]:
        """Evaluate the student after a round, keep it, write and log the round's row, and return the row.

        What has failed in an evaluation is played again as long as the student is still the one of that round.
        """
        row = self.record.row(round_index)
        if row is not None and (self._is_rated(row) or round_index + 1 in self.losses):
            return row
        begin = time.monotonic()
        self._hand_over(module, version=round_index + 1)
        episodes = self._evaluate(round_index)
        row = self._row(round_index, episodes) | {"round/evaluate_s": time.monotonic() - begin}
        self.kept.keep(round_index, best_round([*self.record.rows, row]))
        self.record.add(row, self._steps_until(round_index + 1))
        self.progress.end_round(row)
        self._warn(row)
        return row

    def _evaluate(self, round_index: int) -> Mapping[str, Sequence[Episode]]:
        """Return the episodes of each evaluation by its name."""
        total = sum(evaluator.num_tasks for evaluator in self.evaluators)
        done = sum(evaluator.num_done(round_index) for evaluator in self.evaluators)
        self.progress.begin("evaluate", round_index, total, done=done)
        played = {each.name: each.evaluate(round_index, self._watch_evaluating) for each in self.evaluators}
        failed = [one for episodes in played.values() for one in episodes if one.stop_reason.is_infrastructure]
        self.record.failures("evaluate", round_index, failed)
        return played

    def finish(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Evaluate the last round that was trained, once the training is over."""
        module.to(trainer.strategy.root_device)  # Lightning has put it back on the CPU
        over = [r for r in range(self.num_rounds) if self.store.is_closed(r)]
        self.ensure_evaluated(module, over[-1])

    def check_last_rates(self) -> None:
        """Raise `DataError` where the last evaluation has no success rate: a resume plays its failures again."""
        for evaluator in self.evaluators:
            check_rate(self.record.rows[-1], evaluator.name)

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        datamodule: Any = getattr(trainer, "datamodule", None)
        datamodule.before_round = partial(self.ensure_round, trainer, pl_module)

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        round_index = self._round_index(trainer)
        if self._mark is None:  # not on_train_epoch_start: a resume inside an epoch skips it
            self._mark = time.monotonic()
            self.progress.begin(
                "train", round_index, int(trainer.num_training_batches), done=batch_idx, beta=self._beta(round_index)
            )
        self._learning_rate = float(trainer.optimizers[0].param_groups[0]["lr"])  # of this step, not of the next
        # Dropout too is a pure function of its place, so that a resumed run is the same run.
        place = Key(self.collector.plan.seed, round_index, f"process {trainer.global_rank}", trainer.global_step)
        torch.manual_seed(draw(place, "dropout"))

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss, round_index = float(trainer.strategy.reduce(outputs["loss"], reduce_op="sum")), self._round_index(trainer)
        self.losses.setdefault(round_index, []).append(loss)
        self.num_tokens[round_index] = self.num_tokens.get(round_index, 0) + batch.num_tokens
        before, self._mark = self._mark or time.monotonic(), time.monotonic()
        self.seconds[round_index] = self.seconds.get(round_index, 0.0) + self._mark - before
        self.progress.advance(1, loss=loss)
        self.record.log_step(trainer.global_step, {"train/loss": loss, "train/lr": self._learning_rate})

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._mark = None

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "seconds": self.seconds, "num_tokens": self.num_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses, self.seconds = dict(state_dict["losses"]), dict(state_dict["seconds"])
        self.num_tokens = dict(state_dict["num_tokens"])

    def _round_index(self, trainer: lightning.Trainer) -> int:
        datamodule: Any = getattr(trainer, "datamodule", None)
        return trainer.current_epoch // datamodule.epochs_per_round

    def _hand_over(self, module: lightning.LightningModule, version: int) -> None:
        for engine in self.engines:
            engine.load_weights(version, module.model)

    def _row(self, round_index: int, played: Mapping[str, Sequence[Episode]]) -> dict[str, float]:
        losses = self.losses.get(round_index, [])
        row: dict[str, float] = {"round": round_index}
        if (beta := self._beta(round_index)) is not None:
            row["round/beta"] = beta
        row |= self.store.manifest(round_index)["counts"]
        row |= {"round/train_s": self.seconds.get(round_index, 0.0), "round/num_steps": len(losses)}
        row["round/num_tokens"] = self.num_tokens.get(round_index, 0)
        row |= {"round/loss": fmean(losses[-TAIL_STEPS:])} if losses else {}
        for name, episodes in played.items():
            row |= evaluation_metrics(episodes, name)
        return row

    def _steps_until(self, round_index: int) -> int:
        """Return the optimizer steps of all rounds before this one."""
        return sum(len(losses) for index, losses in self.losses.items() if index < round_index)

    def _beta(self, round_index: int) -> float | None:
        return self.mixing.beta(round_index)

    def _is_good_enough(self, row: Mapping[str, float]) -> bool:
        success = row.get("validation/success_rate", 0.0)
        return self.stop_at_success is not None and success >= self.stop_at_success

    def _is_rated(self, row: Mapping[str, float]) -> bool:
        return all(has_rate(row, evaluator.name) for evaluator in self.evaluators)

    def _warn(self, row: Mapping[str, float]) -> None:
        if row["round"] == 0 and not row.get("round/loss", 0.0) <= POISONED_LOSS:
            self.progress.warn(
                f"round 0 ended with a loss of {row['round/loss']:.2f}, above {POISONED_LOSS:g}: its student acts"
                " nearly at random and the next rounds' labels will be of little use; give round 0 more rounds.steps."
            )
        for name in (evaluator.name for evaluator in self.evaluators):
            if not has_rate(row, name):
                self.progress.warn(
                    f"{row[f'{name}/num_failed']:g} of {row[f'{name}/num_tasks']:g} {name} episodes failed for reasons"
                    f" of infrastructure: {name}/success_rate is not given; see failures.csv."
                )

    def _watch_collecting(self, episode: Episode) -> None:
        self.progress.advance(1 if self.num_labels is None else episode.num_labels, episode=episode)

    def _watch_evaluating(self, episode: Episode) -> None:
        self.progress.advance(1, episode=episode)
