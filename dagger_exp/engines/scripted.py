"""An engine without a model: each token is a pure function of the prompt and the key. For tests of the loop."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from dagger_exp.protocols import Generation, Sampling, Scores


class ScriptedEngine:
    """Answers with tokens that stand in the prompt, chosen by a hash: babble, but out of the world's own words.

    Args:
        end_id: token id that ends a message.
    """

    id, address = "scripted", ""
    is_lock_step = False

    def __init__(self, *, end_id: int) -> None:
        self.end_id = end_id
        self.version = 0

    async def confirm(self) -> None:
        """Look at nothing: there are no weights."""

    def load_weights(self, version: int, weights: Any) -> None:
        self.version = version

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        text = f"{sampling.key} {list(prompt_ids)}"
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        length = min(1 + digest[0] % 3, sampling.max_new_tokens - 1)
        tokens = [prompt_ids[byte % len(prompt_ids)] for byte in digest[1 : 1 + length]]
        tokens = [token for token in tokens if token != self.end_id]
        return Generation([*tokens, self.end_id], [0.0] * (len(tokens) + 1), "stop", self.version)

    async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
        return Scores([0.0] * (len(token_ids) - 1))

    def connected(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def rest(self) -> None:
        """Hold no device."""

    def close(self) -> None:
        """Hold nothing."""
