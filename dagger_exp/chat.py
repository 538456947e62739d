"""Text or tokens? The only place that turns messages into token ids and back.

Token ids, once they exist, are the truth: a prompt is extended by the tokens of what is new and never rendered again.
Where a chat template changes what stood before (so that no extension exists), a new branch starts, and it is counted.
What stood before is the prompt as it was rendered and the response as it was said, but for white space around it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from dagger_exp.errors import DataError
from dagger_exp.types import Message


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    eos_token_id: Any

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...
    def encode(self, text: str, **options: Any) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], **options: Any) -> Any: ...


class Prompt(NamedTuple):
    """The whole prompt of a turn, and what it adds to the turn before (`context_ids`)."""

    prompt_ids: list[int]
    context_ids: list[int]
    starts_branch: bool


class Chat:
    """Messages to token ids by a tokenizer's own chat template.

    Raises:
        DataError: the tokenizer has no chat template or no end-of-message token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.chat_template or tokenizer.eos_token_id is None:
            raise DataError("The student's tokenizer needs a chat_template and an eos_token that ends a message.")
        self.tokenizer = tokenizer
        self.end_id = int(tokenizer.eos_token_id)
        self.end = str(tokenizer.decode([self.end_id], skip_special_tokens=False))
        self.template_hash = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]

    def open(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt of a first turn."""
        ids = self._encode(self._render(messages, add_generation_prompt=True))
        return Prompt(ids, ids, True)

    def extend(self, before: Sequence[int], messages: Sequence[Message], num_new: int) -> Prompt:
        """Return the prompt of a later turn.

        Args:
            before: token ids of the turn before, its prompt and its response as executed.
            messages: the whole conversation; the last `num_new` messages came after that response.
        """
        place = len(messages) - num_new - 1  # of the response
        new = self._render(messages, add_generation_prompt=True)
        asked = self._render(messages[:place], add_generation_prompt=True)
        after = self._after_response(new, asked, messages[place].content.strip())
        if after is None:
            ids = self._encode(new)
            return Prompt(ids, ids, True)
        context = self._encode(after)
        if before[-1] != self.end_id:  # the response was cut before it ended its message
            context = [self.end_id, *context]
        return Prompt([*before, *context], context, False)

    def response_ids(self, message: Message) -> list[int]:
        """Return a message of the teacher as the student would have written it: its text and the end token."""
        return [*self._encode(message.content), self.end_id]

    def parse(self, token_ids: Sequence[int]) -> Message:
        """Return the message that response tokens say."""
        ids = [i for i in token_ids if i != self.end_id]
        return Message("assistant", str(self.tokenizer.decode(ids, skip_special_tokens=False)).strip())

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        rows = [{"role": m.role, "content": m.content} for m in messages]
        return self.tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=add_generation_prompt)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _after_response(self, new: str, asked: str, said: str) -> str | None:
        """Return what a rendering has after the end token of a response; None where it tells the past otherwise.

        What the template writes after that token (a line break, often) belongs to the context that follows.
        """
        rest = new[len(asked) :].lstrip()
        tail = rest[len(said) :].lstrip()
        is_kept = new.startswith(asked) and rest.startswith(said) and tail.startswith(self.end)
        return tail[len(self.end) :] if is_kept else None
