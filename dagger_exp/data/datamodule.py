"""The data of a round for Lightning: the loader is asked for between epochs, and asks for the round first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import lightning
import numpy as np

from dagger_exp.data.batches import Batch
from dagger_exp.data.loader import RoundLoader
from dagger_exp.data.selection import EpisodeFilter, aggregated_rounds
from dagger_exp.errors import ConfigError
from dagger_exp.store.view import StoreView
from dagger_exp.types import Key


class RoundDataModule(lightning.LightningDataModule):
    """Trains round r on the closed rounds that the aggregation names.

    Args:
        store: of the run.
        seed: of the run.
        aggregation: `union`, `latest` or `window`.
        window: rounds of `window`.
        keeps: which episodes are trained on.
        batch_size: episodes per optimizer step, over all processes.
        steps: optimizer steps of each round (one number for all), or None for `epochs_per_round` whole passes.
        epochs_per_round: passes over the aggregate in each round, when `steps` is None.
        max_tree_tokens: longest tree.
        max_tokens: padded tokens of a micro-batch.
        normalize: what has weight 1 in the loss.
        pad_id: token id for padding.
    """

    def __init__(
        self,
        *,
        store: StoreView,
        seed: int,
        keeps: EpisodeFilter,
        batch_size: int,
        max_tree_tokens: int,
        max_tokens: int,
        pad_id: int,
        aggregation: str = "union",
        window: int = 1,
        steps: Sequence[int] | None = None,
        epochs_per_round: int = 1,
        normalize: str = "token",
    ) -> None:
        super().__init__()
        if steps is not None and epochs_per_round != 1:
            raise ConfigError("give rounds.steps or rounds.epochs_per_round, not both.")
        self.store, self.seed, self.keeps = store, seed, keeps
        self.batch_size, self.max_tree_tokens, self.max_tokens = batch_size, max_tree_tokens, max_tokens
        self.aggregation, self.window, self.normalize, self.pad_id = aggregation, window, normalize, pad_id
        self.steps, self.epochs_per_round = steps, epochs_per_round
        self.before_round: Callable[[int], bool] = lambda round_index: True
        """Set by the round callback: makes sure that a round is closed; False ends the training."""

    def train_dataloader(self) -> RoundLoader | list[Batch]:
        """Return the loader of the current epoch's round; an empty one when the run is over."""
        trainer = self.trainer
        assert trainer is not None
        round_index, epoch = divmod(trainer.current_epoch, self.epochs_per_round)
        if not self.before_round(round_index):
            return []
        return self.loader(round_index, epoch, rank=trainer.global_rank, num_processes=trainer.world_size)

    def loader(self, round_index: int, epoch: int = 0, *, rank: int = 0, num_processes: int = 1) -> RoundLoader:
        """Return the loader of one pass of a round."""
        trained_on = aggregated_rounds(self.aggregation, round_index, self.window)
        reader = self.store.read(*trained_on)
        rounds = np.repeat(trained_on, [self.store.manifest(r)["num_episodes"] for r in trained_on])
        wanted = [self.keeps(int(r), reason) for r, reason in zip(rounds, reader.stop_reasons, strict=True)]
        kept = np.flatnonzero(np.array(wanted, dtype=bool) & (reader.num_labels > 0))
        return RoundLoader(
            reader,
            kept,
            key=Key(self.seed, round_index, "", 0),
            num_batches=self.steps[round_index] if self.steps else math.ceil(len(kept) / self.batch_size),
            batch_size=self.batch_size,
            first=epoch * math.ceil(len(kept) / self.batch_size) * self.batch_size,
            max_tree_tokens=self.max_tree_tokens,
            max_tokens=self.max_tokens,
            normalize=self.normalize,
            pad_id=self.pad_id,
            rank=rank,
            num_processes=num_processes,
        )
