"""The gradient of prefix trees is that of one row per label, on one process and on two."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from dagger_exp.data.batches import Batch, make_batch
from dagger_exp.data.datamodule import RoundDataModule
from dagger_exp.data.prefix_tree import Row, grow
from dagger_exp.data.selection import EpisodeFilter, label_rows
from dagger_exp.store.store import Store
from dagger_exp.training.module import StudentModule
from dagger_exp.training.student import from_scratch
from dagger_exp.types import Actor, Episode, StopReason, Turn

TOLERANCE, RATE = 1e-5, 0.1
PAD, NUM_WORDS = 0, 30
WHOLE = 10_000
"""A budget that cuts nothing."""

Normalize = Literal["token", "turn", "episode"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def module() -> StudentModule:
    """Give a random student whose weights are large, so that who sees whom and where makes a difference."""
    words = [f"w{i}" for i in range(NUM_WORDS)]
    sizes: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48}
    student = from_scratch(vocabulary=words, tokenizer="words", max_context_tokens=512, seed=3, **sizes)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.mul_(10 if parameter.dim() > 1 else 1)
    constant = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0)
    return StudentModule(
        student, optimizer=partial(torch.optim.SGD, lr=RATE), lr_scheduler=constant, max_grad_norm=None
    )


def words(rng: random.Random, num: int) -> list[int]:
    return [rng.randrange(6, 6 + NUM_WORDS) for _ in range(num)]


def make_episode(
    seed: int,
    label_of: Callable[[int, list[int], random.Random], list[int] | None],
    *,
    num_turns: int = 5,
    index: int = 0,
    opening: Sequence[int] | None = None,
    round_index: int = 0,
) -> Episode:
    """Return an episode of 4 observation and 3 response tokens a turn, labelled by `label_of(turn, executed, rng)`."""
    rng, turns = random.Random(seed), []
    for t in range(num_turns):
        context, response = words(rng, 4), [*words(rng, 2), 2]
        context = list(opening) if opening and t == 0 else context
        turns.append(
            Turn(
                turn_index=t,
                actor=Actor.STUDENT,
                observation="",
                context_ids=context,
                starts_branch=t == 0,
                response_text="",
                response_ids=response,
                label_text="",
                label_ids=label_of(t, response, rng),
            )
        )
    return Episode(round_index, index, "task", StopReason.SOLVED, turns)


def agree(turn: int, executed: list[int], rng: random.Random) -> list[int]:
    return executed


def differ_at(*turns: int) -> Callable[[int, list[int], random.Random], list[int]]:
    return lambda turn, executed, rng: [*words(rng, 3), 2] if turn in turns else executed


def share_a_part(turn: int, executed: list[int], rng: random.Random) -> list[int]:
    """Return a label that leaves the executed response at its second token, goes beyond its end, or stops inside."""
    return [[*executed[:1], *words(rng, 3)], [*executed, *words(rng, 2)], executed[:2]][turn % 3]


def sometimes(turn: int, executed: list[int], rng: random.Random) -> list[int] | None:
    return [None, executed, [*words(rng, 1 + turn), 2]][rng.randrange(3)]


def rows_of(*episodes: Episode, normalize: str = "token") -> list[Row]:
    return [row for episode in episodes for row in label_rows(episode, normalize)]


def same_opening() -> list[Row]:
    opening = [6, 7, 8, 9, 10]
    first = make_episode(1, differ_at(0, 2), opening=opening)
    second = make_episode(2, differ_at(1), opening=opening, index=1)
    return rows_of(first, second)


def twice_the_same_labels() -> list[Row]:
    rows = rows_of(make_episode(4, differ_at(1, 3)))
    again = [Row(row.prompt_ids, row.label_ids, [0.25] * len(row.label_ids), (0, 1)) for row in rows[::2]]
    return rows + again


CASES: dict[str, list[Row]] = {
    "no branch": rows_of(make_episode(1, agree)),
    "a branch at the first turn": rows_of(make_episode(1, differ_at(0))),
    "a branch at the last turn": rows_of(make_episode(1, differ_at(4))),
    "branches at every turn": rows_of(make_episode(1, differ_at(*range(5)))),
    "labels share a part of the response": rows_of(make_episode(2, share_a_part, num_turns=6)),
    "some turns have no label": rows_of(make_episode(3, sometimes, num_turns=8)),
    "two episodes share their opening": same_opening(),
    "duplicate labels": twice_the_same_labels(),
    "each turn weighs 1": rows_of(make_episode(5, differ_at(1, 2)), normalize="turn"),
    "each episode weighs 1": rows_of(
        make_episode(6, differ_at(0)), make_episode(7, differ_at(3), num_turns=2, index=1), normalize="episode"
    ),
}


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES.keys())
def test_gradient_of_a_tree_is_that_of_one_row_per_label(module: StudentModule, rows: list[Row]) -> None:
    trees = grow(rows, WHOLE)
    assert len(trees) == 1
    assert difference(tree_gradient(module, batch_of([trees])), naive_gradient(module, rows)) < TOLERANCE


@pytest.mark.parametrize("max_tree_tokens", [24, 40, 60])
def test_gradient_of_a_cut_tree_is_that_of_one_row_per_label(module: StudentModule, max_tree_tokens: int) -> None:
    rows = rows_of(make_episode(1, differ_at(0, 2, 5), num_turns=7))
    trees = grow(rows, max_tree_tokens)
    assert len(trees) > 1
    assert difference(tree_gradient(module, batch_of([trees])), naive_gradient(module, rows)) < TOLERANCE


def test_gradient_of_padded_micro_batches_is_that_of_one_row_per_label(module: StudentModule) -> None:
    episodes = [make_episode(i, sometimes, num_turns=4 + i // 8, index=i) for i in range(1, 11)]
    trees = [tree for episode in episodes for tree in grow(rows_of(episode), WHOLE)]
    batch = batch_of([trees], max_tokens=400)
    assert len(batch.micro_batches) > 1
    assert any(len(micro_batch.input_ids) > 2 for micro_batch in batch.micro_batches)
    assert any((micro_batch.input_ids == PAD).any() for micro_batch in batch.micro_batches)
    assert difference(tree_gradient(module, batch), naive_gradient(module, rows_of(*episodes))) < TOLERANCE


def test_gradients_of_two_ranks_add_up(module: StudentModule) -> None:
    """Their sum is the gradient of the global batch, though the second rank has one micro-batch less of its own."""
    episodes = [make_episode(i, differ_at(1), num_turns=3 + i, index=i) for i in range(3)]
    trees = [grow(rows_of(episode), WHOLE) for episode in episodes]
    shares = [[*trees[0], *trees[2]], trees[1]]
    ranks = [batch_of(shares, rank=rank, max_tokens=40) for rank in range(2)]
    assert len(ranks[0].micro_batches) == len(ranks[1].micro_batches) == 2
    total = tree_gradient(module, ranks[0]) + tree_gradient(module, ranks[1])
    assert difference(total, naive_gradient(module, rows_of(*episodes))) < TOLERANCE


@pytest.mark.parametrize("devices", [1, 2])
def test_two_steps_of_the_trainer_follow_the_naive_gradient(
    module: StudentModule, tmp_path: Path, devices: int
) -> None:
    """With SGD a step is minus rate times gradient; two processes share each batch and must take the same steps."""
    episodes = [make_episode(i, differ_at(1), num_turns=2 + i, index=i) for i in range(5)]
    expected = naive_descent(deepcopy(module), rows_of(*episodes), num_steps=2)
    before = flat(module)
    datamodule = datamodule_of(tmp_path, [episodes], batch_size=5, steps=[2])
    strategy = "auto" if devices == 1 else "ddp_fork"
    trainer(tmp_path, devices=devices, strategy=strategy, max_epochs=1).fit(module, datamodule)
    assert difference(flat(module) - before, expected - before) < 1e-3  # a difference of rounded weights


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_gradients_are_clipped_over_the_whole_step(module: StudentModule, tmp_path: Path, scale: float | None) -> None:
    """With fp16 they are scaled up meanwhile, which the limit must not meet."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0)
    plugins = [] if scale is None else [MixedPrecision("16-mixed", "cpu", scaler)]
    module.max_grad_norm, before = 0.01, flat(module)
    datamodule = datamodule_of(tmp_path, [[make_episode(1, differ_at(1))]], batch_size=1)
    trainer(tmp_path, max_epochs=1, plugins=plugins).fit(module, datamodule)
    assert float((before - flat(module)).norm()) == pytest.approx(0.01 * RATE, rel=1e-3)


class BatchesSeen(lightning.Callback):
    """Notes round and tokens of every batch that is trained on."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[int]]] = []

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self.seen.append((trainer.current_epoch, batch.micro_batches[0].input_ids.flatten().tolist()))


@pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization:UserWarning")
@pytest.mark.parametrize(("checkpoint", "num_taken"), [("step=2", 2), ("step=3", 3), ("epoch=0", 3), ("step=4", 4)])
def test_a_resumed_trainer_repeats_and_skips_no_batch(
    module: StudentModule, tmp_path: Path, checkpoint: str, num_taken: int
) -> None:
    """Killed inside a round, after its last step, at its end, and inside the next one; 2 rounds have 3 steps each."""
    rounds = [[make_episode(10 * r + i, agree, index=i, round_index=r) for i in range(4)] for r in range(2)]
    datamodule = datamodule_of(tmp_path, rounds, batch_size=2, steps=[3, 3])
    whole, rest = BatchesSeen(), BatchesSeen()
    trainer(tmp_path, max_epochs=2, callbacks=[whole, *checkpoints(tmp_path)]).fit(module, datamodule)
    trainer(tmp_path, max_epochs=2, callbacks=[rest, *checkpoints(tmp_path)]).fit(
        module, datamodule, ckpt_path=tmp_path / f"{checkpoint}.ckpt", weights_only=False
    )
    assert len(whole.seen) == 6
    assert rest.seen == whole.seen[num_taken:]


def batch_of(shares: Sequence[Sequence[Any]], rank: int = 0, max_tokens: int = 4096) -> Batch:
    return make_batch(shares, rank, max_tokens, PAD, num_episodes=1)


def tree_gradient(module: StudentModule, batch: Batch) -> torch.Tensor:
    module.zero_grad()
    for micro_batch in batch.micro_batches:
        (module.loss(micro_batch) / batch.total_weight).backward()
    return flat_gradient(module)


def naive_gradient(module: StudentModule, rows: Sequence[Row]) -> torch.Tensor:
    """Return the gradient of one row per label: its whole prefix, its label, the model's own causal mask."""
    module.zero_grad()
    total = sum(sum(row.weights) for row in rows)
    for row in rows:
        ids = torch.tensor([[*row.prompt_ids, *row.label_ids]])
        logits = module.model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(row.label_ids), reduction="none")
        ((losses * torch.tensor(row.weights)).sum() / total).backward()
    return flat_gradient(module)


def naive_descent(module: StudentModule, rows: Sequence[Row], num_steps: int) -> torch.Tensor:
    """Return the weights after so many steps along the naive gradient."""
    for _ in range(num_steps):
        weights = flat(module) - RATE * naive_gradient(module, rows)
        torch.nn.utils.vector_to_parameters(weights.float(), module.parameters())
    return flat(module)


def flat_gradient(module: StudentModule) -> torch.Tensor:
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).double()
    module.zero_grad()
    return gradient


def flat(module: StudentModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()]).double()


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative error."""
    return float((found - expected).norm() / expected.norm())


def datamodule_of(folder: Path, rounds: Sequence[Sequence[Episode]], **options: Any) -> RoundDataModule:
    store = Store(folder / "rounds", "run")
    for round_index, episodes in enumerate(rounds):
        for episode in episodes:
            store.commit(episode)
        store.close_round(round_index, len(episodes), {})
    budgets = {"max_tree_tokens": 40, "max_tokens": 90, "pad_id": PAD}
    return RoundDataModule(store=store, seed=0, keeps=EpisodeFilter(), **budgets, **options)


def checkpoints(folder: Path) -> list[ModelCheckpoint]:
    """Return what saves after every step and at the end of every epoch, each into a file of its own."""
    return [
        ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False),
        ModelCheckpoint(folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True),
    ]


def trainer(folder: Path, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing="callbacks" in options,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        **options,
    )
