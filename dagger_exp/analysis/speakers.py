"""Who said what of an observation? A store holds its text as one; its tokens still have the marks of each message."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from dagger_exp.types import Turn

NAMES = re.compile("system|user|assistant|tool")
"""Of roles; every common chat template writes one before a message, and `tool_response` before what a tool answered."""
Said = dict[str, Any]


class Speakers:
    """Takes observations apart into the messages that they were joined of.

    Args:
        decode: token ids to text, special tokens too; None where there is no tokenizer.

    Attributes:
        num_unknown: turns of which the tokens did not tell, so that they are one message of the user.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str] | None) -> None:
        self.decode, self.num_unknown = decode, 0

    def shown(self, turn: Turn) -> list[Said]:
        """Return the messages of an observation, each with the weight 0."""
        found = _apart(turn.observation, self.decode(turn.context_ids)) if self.decode else []
        self.num_unknown += not found
        return [{"role": role, "content": text, "weight": 0} for role, text in found or [("user", turn.observation)]]


def _apart(observation: str, prompt: str) -> list[tuple[str, str]]:
    """Return roles and texts, in order; none where the text does not stand in the prompt.

    Messages were joined by line breaks: the longest part that stands in the prompt in one piece is the first of them.
    """
    found: list[tuple[str, str]] = []
    begin, rest = 0, observation
    while name := NAMES.search(prompt, begin):
        if (last := prompt.rfind(rest, name.end())) >= 0:
            # From the end, because a short text may be a part of a mark; the last mark is that of the answer to come.
            names = [role for role in NAMES.findall(prompt[begin:last]) if role != "assistant"]
            return [*found, (names[-1], rest)] if names else []
        cuts = (match.start() for match in reversed([*re.finditer("\n", rest)]))
        cut = next((cut for cut in cuts if prompt.find(rest[:cut], name.end()) >= 0), None)
        if cut is None:
            return []
        place = prompt.find(rest[:cut], name.end())
        found.append((NAMES.findall(prompt[begin:place])[-1], rest[:cut]))
        begin, rest = place + cut, rest[cut + 1 :]
    return []
