"""Text or tokens? The only place that turns messages into token ids and back.

Token ids, once they exist, are the truth: a prompt is extended by the tokens of what is new and never rendered again.
Where a chat template changes what stood before (so that no extension exists), a new branch starts, and it is counted.
What stood before is the prompt as it was rendered and the response as it was said, but for white space.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from jinja2 import TemplateError

from dagger_exp.errors import ConfigError, DataError, LabelError
from dagger_exp.types import Message, ToolCall


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    chat_template: Any
    eos_token_id: Any
    added_tokens_decoder: Any

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...
    def encode(self, text: str, **options: Any) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], **options: Any) -> Any: ...


EMPTY_THOUGHT = re.compile(r"^\s*<think>\s*</think>\s*")
"""What some templates write before an answer that came without reasoning; nobody said it, so nobody learns it."""


ANSWER = "4711"
"""Said once, to see what a template writes after it."""
CACHED_TEXTS = 4096
"""Observations that are rendered again with every later turn of their episode."""


class Prompt(NamedTuple):
    """The whole prompt of a turn, what it adds to the turn before (`context_ids`), and the text it was made of."""

    prompt_ids: list[int]
    context_ids: list[int]
    starts_branch: bool
    text: str


class Chat:
    """Messages to token ids by a tokenizer's own chat template.

    Args:
        tokenizer: of a Hugging Face model.
        tools: JSON schemas of the tools that the template is to show.
        options: what the template takes beside, as `enable_thinking` of Qwen3's.

    Raises:
        DataError: the tokenizer has no chat template or no end-of-message token.
        ConfigError: there are tools, and the template does not show them.
    """

    def __init__(
        self, tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] = (), options: Mapping[str, Any] | None = None
    ) -> None:
        if not tokenizer.chat_template or tokenizer.eos_token_id is None:
            raise DataError("The student's tokenizer needs a chat_template and an eos_token that ends a message.")
        self.tokenizer = tokenizer
        self.options = dict(options or {})
        self.template_hash = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
        special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special[int(tokenizer.eos_token_id)] = str(tokenizer.decode([tokenizer.eos_token_id]))
        self._special = re.compile("|".join(map(re.escape, special.values())))
        self._harmless = lru_cache(CACHED_TEXTS)(self._broken_up)
        self.end = special[int(tokenizer.eos_token_id)]
        self.end = self._end_of_message() or self.end
        self.end_id = next(i for i, token in special.items() if token == self.end)
        hello = [Message("user", "hello")]
        without = self._render(hello)
        if tools:
            self.options["tools"] = list(tools)
            if self._render(hello) == without:
                raise ConfigError("the student's chat template shows no tools; choose a model whose template does.")

    def open(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt of a first turn."""
        return self._branch(self._render(messages))

    def extend(self, before: Prompt, response_ids: Sequence[int], messages: Sequence[Message]) -> Prompt:
        """Return the prompt of a later turn.

        Args:
            before: prompt of the turn before.
            response_ids: what was executed then.
            messages: the whole conversation, that response and what came after it too.
        """
        text = self._render(messages)
        after = self._after_response(text, before.text, self.parse(response_ids).content)
        if after is None:
            return self._branch(text)
        context = self._encode(self.end + after)  # at once: an end token may take the white space after it
        if response_ids[-1] == self.end_id:  # else it was cut before it ended its message
            context = context[1:]
        return Prompt([*before.prompt_ids, *response_ids, *context], context, False, text)

    def response_ids(self, message: Message, prompt: Prompt, messages: Sequence[Message]) -> list[int]:
        """Return a message of the teacher as the student would have written it: its text and the end token.

        Args:
            message: of the teacher.
            prompt: that it answers.
            messages: of which the prompt was made.

        Raises:
            LabelError: it holds tool calls or reasoning that the student's template does not write.
        """
        if not (message.tool_calls or message.reasoning):
            return [*self._encode(self._harmless(message.content)), self.end_id]
        whole = self._answered(messages, message)
        body, end, _ = whole[len(prompt.text) :].partition(self.end)
        is_told = all(self._answered(messages, less) != whole for less in _lessened(message))
        if not whole.startswith(prompt.text) or not end or not is_told:
            raise LabelError("the student's chat template cannot write the teacher's tool calls or reasoning.")
        return [*self._encode(body if message.reasoning else EMPTY_THOUGHT.sub("", body)), self.end_id]

    def parse(self, token_ids: Sequence[int]) -> Message:
        """Return the message that response tokens say."""
        ids = [i for i in token_ids if i != self.end_id]
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Message("assistant", str(text).strip())

    def _branch(self, text: str) -> Prompt:
        ids = self._encode(text)
        return Prompt(ids, ids, True, text)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        rows = [self._row(message) for message in messages]
        return self.tokenizer.apply_chat_template(
            rows, tokenize=False, add_generation_prompt=add_generation_prompt, **self.options
        )

    def _answered(self, messages: Sequence[Message], message: Message) -> str:
        """Return a conversation that ends with a message of the teacher; nothing where the template refuses it."""
        try:
            return self._render([*messages, message], add_generation_prompt=False)
        except (TemplateError, TypeError, ValueError):  # as for two calls, or for arguments that are no mapping
            return ""

    def _row(self, message: Message) -> dict[str, Any]:
        """Return a message as templates take it; an observation that spells a control token does not become one.

        What the student said stays as it is; but for the end token, which it can only have spelled.
        """
        is_own = message.role == "assistant" and not (message.reasoning or message.tool_calls)
        text = (
            message.content.replace(self.end, self._harmless(self.end)) if is_own else self._harmless(message.content)
        )
        row: dict[str, Any] = {"role": message.role, "content": text}
        if message.reasoning:
            row["reasoning_content"] = self._harmless(message.reasoning)
        if message.tool_calls:
            row["tool_calls"] = [self._call(call) for call in message.tool_calls]
        return row

    def _call(self, call: ToolCall) -> dict[str, Any]:
        """Return a call as templates take it: its arguments as a mapping, or as the text that is none."""
        try:
            arguments = json.loads(self._harmless(json.dumps(json.loads(call.arguments), ensure_ascii=False)))
        except ValueError:
            arguments = self._harmless(call.arguments)
        return {"type": "function", "function": {"name": call.name, "arguments": arguments}}

    def _end_of_message(self) -> str | None:
        """Return the special token that the template writes after an answer; a base model's end of text is another."""
        whole = self._answered([Message("user", "hello")], Message("assistant", ANSWER))
        found = self._special.match(whole.partition(ANSWER)[2].lstrip())
        return found[0] if found else None

    def _broken_up(self, text: str) -> str:
        """Break up what would be read as a special token, with a space after its first character."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def _encode(self, text: str) -> list[int]:
        whole = text.encode(errors="replace").decode()  # half a surrogate pair, which JSON may hold, has no tokens
        return list(self.tokenizer.encode(whole, add_special_tokens=False))

    def _after_response(self, text: str, asked: str, said: str) -> str | None:
        """Return what a rendering has after the end token of a response; None where it tells the past otherwise.

        What the template writes after that token (a line break, often) belongs to the context that follows.
        """
        body, end, after = text[len(asked) :].partition(self.end)
        return after if text.startswith(asked) and end and _squeezed(body) == _squeezed(said) else None


def _lessened(message: Message) -> Iterator[Message]:
    """Yield a message without its reasoning and without each of its calls; a template that tells them differs."""
    if message.reasoning.strip():
        yield replace(message, reasoning="")
    for index in range(len(message.tool_calls)):
        yield replace(message, tool_calls=message.tool_calls[:index] + message.tool_calls[index + 1 :])


def _squeezed(text: str) -> str:
    return "".join(text.split())
