"""Does a model keep the branches of a prefix tree apart? One that does not would be trained on what it must not see.

The mask of a tree reaches the attention alone, and some models do not take it there as it is: a convolution or a state
that runs along the sequence goes past it, a sliding window of the model's own is replaced by it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dagger_exp.engines.scoring import generating
from dagger_exp.errors import ConfigError
from dagger_exp.training.student import Student

TOKENS = (11, 19, 13, 17, 15, 12, 18)
"""A trunk of three tokens and two branches of two."""
POSITIONS = (0, 1, 2, 3, 4, 3, 4)
BRANCHES = ((3, 4), (5, 6))
TOLERANCE = {torch.float32: 1e-3}
"""Largest difference between tree and row, of what the other branch's tokens make of it; rounding alone is far less."""
TOLERANCE_OF_HALF = 0.05


def check_trees(student: Student) -> None:
    """Compare a small tree with a row per branch; a window is looked up, since a small tree fits into it.

    Raises:
        ConfigError: they differ, the model takes no such mask, or its window is smaller than a tree may be.
    """
    window, longest = _window(student.model.config), student.max_context_tokens
    if window is not None and window < longest:
        raise ConfigError(
            f"layers of this student look back {window} tokens only, which a prefix tree does not keep to: set "
            f"student.max_context_tokens to {window} (it is {longest}), or choose a model without such a window."
        )
    try:
        difference = _difference(student.model)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"this student cannot be trained on prefix trees ({said}); {MEND}") from error
    if not difference <= TOLERANCE.get(student.model.dtype, TOLERANCE_OF_HALF):
        raise ConfigError(f"this student's model mixes the branches of a prefix tree; {MEND}")


MEND = "choose one whose layers are all attention by PyTorch's SDPA, as those of Qwen3, Llama or GPT-2."


def _difference(model: Any) -> float:
    """Return how far the logits of the tree are from those of its rows, as a share of what the branches differ in."""
    with generating(model):
        device = next(model.parameters()).device
        ids, positions = (torch.tensor([values], device=device) for values in (TOKENS, POSITIONS))
        ids %= model.config.get_text_config().vocab_size
        whole = _logits(model, ids, position_ids=positions, attention_mask=_mask(device))
        rows = [[0, 1, 2, *branch] for branch in BRANCHES]
        alone = [_logits(model, ids[:, row]) for row in rows]
    apart = max(float((whole[row] - logits).abs().max()) for row, logits in zip(rows, alone, strict=True))
    return apart / float((alone[0][3:] - alone[1][3:]).abs().max())


def _logits(model: Any, ids: Tensor, **tree: Tensor) -> Tensor:
    """Return (num_tokens, vocabulary), asked for as training does."""
    places = torch.arange(ids.shape[1], device=ids.device)
    return model(input_ids=ids, use_cache=False, logits_to_keep=places, **tree).logits[0].float()


def _mask(device: torch.device) -> Tensor:
    """Return (1, 1, num_tokens, num_tokens): the trunk sees the past, a branch the trunk and its own past."""
    mask = torch.ones(len(TOKENS), len(TOKENS), dtype=torch.bool, device=device).tril()
    mask[BRANCHES[1], BRANCHES[0][0] : BRANCHES[0][-1] + 1] = False
    return mask[None, None]


def _window(config: Any) -> int | None:
    """Return how far the model's windowed layers look back; None where it has none."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None and not any("sliding" in kind or "chunked" in kind for kind in kinds):
        return None
    sizes = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((size for size in sizes if isinstance(size, int)), default=None)
