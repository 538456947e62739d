"""Does a vLLM server compute what the trainer computes? Both score the same tokens, and the scores are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.engines.scoring import score
from dagger_exp.errors import EngineError
from dagger_exp.seeding import integer
from dagger_exp.types import Key

NUM_TOKENS = 32


class DriftError(EngineError):
    """A server does not compute what the trainer computes."""


class Probe:
    """Fixed tokens, their log-probabilities under the trainer's weights, and the servers that were held against them.

    Args:
        tolerance: largest difference of a log-probability, in nats.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance, self.drift = tolerance, 0.0
        self.ids, self._num_retries = list[int](), dict[str, int]()
        self._trained: Sequence[float] = ()

    def take(self, weights: Any) -> None:
        """Score the tokens with the live module that trains."""
        size, key = int(weights.config.vocab_size), Key(0, 0, "probe", 0)
        self.ids = [integer(key, f"token {place}", size) for place in range(NUM_TOKENS)]
        self._trained = score(weights, self.ids).logprobs

    def compare(self, endpoint: Endpoint, served: Sequence[float], num_retries: int, version: int) -> None:
        """Hold a server's log-probabilities against the trainer's; raises `DriftError`.

        Args:
            endpoint: the server.
            served: what it says to the tokens.
            num_retries: that the endpoint had counted before it was asked.
            version: of the policy.
        """
        self.drift = max(abs(one - other) for one, other in zip(served, self._trained, strict=True))
        if not self.drift <= self.tolerance:  # also where it is no number
            raise DriftError(
                f"after the update to policy version {version} the log-probabilities of {endpoint.address} differ from "
                f"the trainer's by {self.drift:.2g}, more than engine.probe_tolerance={self.tolerance:g}."
            )
        self._num_retries[endpoint.address] = num_retries

    def is_due(self, endpoint: Endpoint) -> bool:
        """Whether a request had to be repeated since: the server may have been started again, with other weights."""
        return endpoint.num_retries != self._num_retries.get(endpoint.address, endpoint.num_retries)
