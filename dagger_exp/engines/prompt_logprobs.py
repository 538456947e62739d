"""What a server says beside its text: tokens, log-probabilities of given ones, and what an answer has cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.errors import EngineError
from dagger_exp.protocols import Generation, Scores
from dagger_exp.types import Usage


def usage_of(answer: Any) -> Usage:
    """Return what an answer has cost, as far as it tells."""
    told = answer.get("usage") if isinstance(answer, Mapping) else None
    counts = [(told if isinstance(told, Mapping) else {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
    return Usage(*(count if isinstance(count, int) else 0 for count in counts))


async def score_at(
    endpoint: Endpoint, model: str | None, token_ids: Sequence[int], num_top: int = 0, **more: Any
) -> Scores:
    """Return the log-probabilities of tokens under a served model.

    The server holds the logits of as many tokens at once as its `--max-num-batched-tokens` says.

    Args:
        endpoint: of a vLLM server.
        model: name under which it is served; None where the server has only one.
        token_ids: at least two.
        num_top: how many of the likeliest tokens to return beside.
        more: of the request's body.

    Raises:
        EngineError: the server gives none, or in another form.
    """
    body = {"model": model, "prompt": list(token_ids), "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": num_top}
    answer = await endpoint.post("/v1/completions", {**body, **more})
    with understood(endpoint):
        rows = answer["choices"][0].get("prompt_logprobs")
        if not rows:
            raise EngineError(f"{endpoint.address} gives no log-probabilities of a prompt: it must be a vLLM server.")
        logprobs = [float(row[str(token)]["logprob"]) for token, row in zip(token_ids[1:], rows[1:], strict=True)]
        if not num_top:
            return Scores(logprobs, usage=usage_of(answer))
        tops = [sorted(row.items(), key=lambda item: item[1]["rank"])[:num_top] for row in rows[1:]]
        top_ids = [[int(token) for token, _ in top] for top in tops]
        return Scores(logprobs, top_ids, [[entry["logprob"] for _, entry in top] for top in tops], usage_of(answer))


@contextmanager
def understood(endpoint: Endpoint) -> Iterator[None]:
    """Have an answer in a form that nobody expects be an `EngineError` that names the server."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise EngineError(f"{endpoint.address} answers in a form that is not understood: {error!r}") from error


def generation_of(endpoint: Endpoint, choice: Any, version: int) -> Generation:
    """Return a response, of one token at least; raises `EngineError` where it is nobody's action."""
    token_ids, logprobs, reason = choice.get("token_ids"), choice.get("logprobs"), choice.get("finish_reason")
    if token_ids is None or logprobs is None:
        raise EngineError(f"{endpoint.address} returns no token ids: it must be a vLLM server of 0.11 or later.")
    if reason not in ("stop", "length"):
        raise EngineError(f"{endpoint.address} broke off an answer: its finish_reason is {reason!r}.")
    values = [float(value) for value in logprobs["token_logprobs"]]
    if not token_ids or len(token_ids) != len(values):
        raise ValueError(f"{len(token_ids)} token ids with {len(values)} log-probabilities")
    return Generation(token_ids, values, reason, version)
