"""How likely are given tokens under a model in this process? The probe asks the trainer, a labeler a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from dagger_exp.protocols import Scores

CHUNK = 512
"""Places whose logits stand in memory at once: a vocabulary of 150,000 in fp32 takes 300 MB of them."""

AFTER_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""What a model's config calls the changes that it makes to logits itself (Gemma, Granite, Cohere): it is asked for all
of them at once."""


@contextmanager
def generating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation and inference mode; the mode before is restored, of each part its own."""
    were_training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part in were_training:
            part.training = True


def score(model: Any, token_ids: Sequence[int], num_top: int = 0) -> Scores:
    """Return the log-probabilities of tokens under a causal language model, with one pass and chunks of logits.

    Args:
        model: a Hugging Face causal language model, or a PEFT model around one.
        token_ids: at least two.
        num_top: how many of the likeliest tokens to return beside.
    """
    with generating(model):
        ids = torch.tensor([list(token_ids)], device=next(model.parameters()).device)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        if any(getattr(inner.config, name, None) for name in AFTER_HEAD):
            places, head = inner(input_ids=ids, use_cache=False).logits[0, :-1], torch.nn.Identity()
        else:
            places = inner.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
            head = inner.get_output_embeddings()
        parts = [
            _chunk(head(places[begin : begin + CHUNK]), ids[0, 1:][begin : begin + CHUNK], num_top)
            for begin in range(0, len(places), CHUNK)
        ]
    logprobs, top_ids, top_logprobs = ([row for part in parts for row in part[i]] for i in range(3))
    return Scores(logprobs, top_ids, top_logprobs) if num_top else Scores(logprobs)


def _chunk(logits: torch.Tensor, targets: torch.Tensor, num_top: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Return (num_tokens,) values and (num_tokens, num_top) ids and values of logits (num_tokens, vocabulary)."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    top = logprobs.topk(num_top, dim=-1)
    return logprobs.gather(1, targets[:, None])[:, 0].tolist(), top.indices.tolist(), top.values.tolist()
