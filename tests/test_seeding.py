"""Coins: pure functions of their key, uniform, and independent of each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare

from dagger_exp.seeding import draw, integer, uniform
from dagger_exp.types import Key

NUM_KEYS = 20_000
KEYS = [Key(n % 5, n % 3, f"train-{n % 97:06d}", n, n % 7) for n in range(NUM_KEYS)]
PRINT_DRAWS = """
import sys
from dagger_exp.seeding import draw
from dagger_exp.types import Key
numbers = range(50) if sys.argv[1] == "forward" else reversed(range(50))
found = {n: draw(Key(1, 2, f"task-{n}", n, n % 3), "actor") for n in numbers}
print([found[n] for n in range(50)])
"""


@pytest.mark.parametrize(
    ("key", "purpose", "bits"),
    [
        (Key(0, 0, "train-000000", 0, 0), "actor", 14896584793481104782),
        (Key(1, 2, "heldout-000003", 4, 5), "kappa", 13324784083899767839),
        (Key(-1, 0, "é", 10**12, 0), "token 7", 10756145493255413786),
    ],
)
def test_golden_values(key: Key, purpose: str, bits: int) -> None:
    """Stores and published numbers depend on these: another function would make other runs."""
    assert draw(key, purpose) == bits
    assert uniform(key, purpose) == (bits // 2**11) / 2**53
    assert integer(key, purpose, 1000) == bits % 1000


def test_coins_depend_neither_on_process_nor_order_nor_hash_seed() -> None:
    def other_process(hash_seed: str, order: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", PRINT_DRAWS, order]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()

    here = str([draw(Key(1, 2, f"task-{n}", n, n % 3), "actor") for n in range(50)])
    assert other_process("1", "forward") == other_process("2", "backward") == here


def test_coins_are_uniform() -> None:
    coins = np.array([uniform(key, "actor") for key in KEYS])
    assert coins.min() >= 0.0
    assert coins.max() < 1.0
    assert chisquare(np.histogram(coins, bins=50, range=(0, 1))[0]).pvalue > 1e-3
    assert chisquare(np.bincount([integer(key, "kappa", 7) for key in KEYS], minlength=7)).pvalue > 1e-3


@pytest.mark.parametrize(
    "other",
    [
        lambda key: (key, "kappa"),
        lambda key: (key._replace(turn_index=key.turn_index + 1), "actor"),
        lambda key: (key._replace(episode_index=key.episode_index + 1), "actor"),
        lambda key: (key._replace(round_index=key.round_index + 1), "actor"),
        lambda key: (key._replace(seed=key.seed + 1), "actor"),
        lambda key: (key._replace(task_id=f"{key.task_id}0"), "actor"),
    ],
    ids=["purpose", "turn", "episode", "round", "seed", "task"],
)
def test_neighbouring_coins_are_independent(other: Callable[[Key], tuple[Key, str]]) -> None:
    pairs = np.array([(uniform(key, "actor"), uniform(*other(key))) for key in KEYS])
    table = np.histogram2d(pairs[:, 0], pairs[:, 1], bins=8, range=[(0, 1), (0, 1)])[0]
    assert float(chi2_contingency(table).pvalue) > 1e-3  # pyright: ignore[reportAttributeAccessIssue]
    assert (pairs[:, 0] != pairs[:, 1]).all()


def test_numbers_of_a_key_do_not_run_together() -> None:
    assert draw(Key(1, 11, "a", 1, 1), "p") != draw(Key(11, 1, "a", 1, 1), "p")
    assert draw(Key(0, 0, "a", 1, 11), "p") != draw(Key(0, 0, "a", 11, 1), "p")
    assert draw(Key(0, 0, "a1", 1, 0), "p") != draw(Key(0, 0, "a", 11, 0), "p")
