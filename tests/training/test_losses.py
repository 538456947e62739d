"""Losses against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from dagger_exp.training.losses import weighted_cross_entropy

# Rows of probabilities, as logits that are off by a constant: 1/2, 1/4, 1/4; 1/10, 8/10, 1/10; 1/3, 1/3, 1/3.
LOGITS = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [1 / 3, 1 / 3, 1 / 3]]).log() + torch.tensor(
    [[5.0], [-3.0], [0.0]]
)
TARGETS = torch.tensor([1, 1, 2])


def test_weighted_cross_entropy_of_three_tokens() -> None:
    weights = torch.tensor([2.0, 0.5, 0.0])
    expected = 2 * math.log(4) + 0.5 * math.log(10 / 8) + 0
    assert float(weighted_cross_entropy(LOGITS, TARGETS, weights)) == pytest.approx(expected, rel=1e-6)


def test_gradient_of_weighted_cross_entropy_is_weight_times_p_minus_target() -> None:
    logits = LOGITS.clone().requires_grad_()
    weighted_cross_entropy(logits, TARGETS, torch.tensor([2.0, 0.5, 0.0])).backward()
    expected = torch.tensor([[1.0, -1.5, 0.5], [0.05, -0.1, 0.05], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-6)


def test_half_precision_logits_are_summed_in_single_precision() -> None:
    """A sum of 3000 equal losses in bfloat16 would stop growing long before its end."""
    logits, targets = torch.zeros(3000, 4, dtype=torch.bfloat16), torch.zeros(3000, dtype=torch.long)
    loss = weighted_cross_entropy(logits, targets, torch.ones(3000))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(3000 * math.log(4), rel=1e-5)


def test_no_token_is_a_loss_of_zero_that_can_be_differentiated() -> None:
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.zeros(0, dtype=torch.long), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0.0
