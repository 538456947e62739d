"""Does a vLLM server compute what the trainer computes? Both score the same tokens, and the scores are compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.engines.scoring import score
from dagger_exp.errors import DriftError
from dagger_exp.seeding import integer
from dagger_exp.types import Key

NUM_TOKENS = 32
CLEARLY = 4.0


class Probe:
    """Fixed tokens, their log-probabilities under the trainer's weights, and the servers that were held against them.

    A server that keeps weights of an earlier version may be within the tolerance, where a round has moved them little.
    So it may not be nearer to those either: that is asked where the two differ by more than `CLEARLY` times the noise,
    which is what the last probe of this server that was passed has found.

    Args:
        tolerance: largest mean difference of the log-probabilities, in nats.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance, self.drift, self._noise = tolerance, 0.0, dict[str, float]()
        self.ids, self._num_failures = list[int](), dict[str, int]()
        self._trained = dict[int, Sequence[float]]()  # by policy version: the first, the one before, and the last

    def take(self, weights: Any, version: int) -> None:
        """Score the tokens with the live module that trains."""
        size, key = int(weights.config.vocab_size), Key(0, 0, "probe", 0)
        self.ids = [integer(key, f"token {place}", size) for place in range(NUM_TOKENS)]
        self._trained[version] = score(weights, self.ids).logprobs
        first, *later = self._trained
        self._trained = {of: self._trained[of] for of in (first, *later[-2:])}

    def compare(self, endpoint: Endpoint, served: Sequence[float], num_failures: int, version: int) -> None:
        """Hold a server's log-probabilities against the trainer's; raises `DriftError`.

        Args:
            endpoint: the server.
            served: what it says to the tokens.
            num_failures: that the endpoint had counted before it was asked.
            version: of the policy.
        """
        trained = self._trained[version]
        self.drift = _apart(served, trained)
        said = f"after the update to policy version {version} the log-probabilities of {endpoint.address}"
        if not self.drift <= self.tolerance:  # also where it is no number
            raise DriftError(
                f"{said} differ from the trainer's by {self.drift:.2g}, more than "
                f"engine.probe_tolerance={self.tolerance:g}: it does not take them, or another run uses it too."
            )
        noise = self._noise.get(endpoint.address, math.inf)
        for earlier, scores in self._trained.items():
            if _apart(scores, trained) > CLEARLY * noise and _apart(served, scores) < self.drift:
                raise DriftError(
                    f"{said} are nearer to those of version {earlier}: it has not taken the new weights, or its dtype "
                    "rounds them away (see engine.server.dtype)."
                )
        self._noise[endpoint.address], self._num_failures[endpoint.address] = self.drift, num_failures

    def is_due(self, endpoint: Endpoint) -> bool:
        """Whether a request has failed since: the server may have been started again, with other weights."""
        return endpoint.num_failures != self._num_failures.get(endpoint.address, endpoint.num_failures)


def _apart(one: Sequence[float], other: Sequence[float]) -> float:
    # The mean: between kernels of bf16 the largest of 31 is three times that, as after a small round of training.
    return float(np.abs(np.subtract(one, other)).mean())  # no number where one of them is none
