"""Text or tokens? The only place that turns messages into token ids and back.

Token ids, once they exist, are the truth: a prompt is extended by the tokens of what is new and never rendered again.
Where a chat template changes what stood before (so that no extension exists), a new branch starts, and it is counted.
What stood before is the prompt as it was rendered and the response as it was said, but for white space and an empty
thought: where thinking is switched off, many templates write one into a prompt and drop it later. The tokens stay what
they were, or each turn would be a branch, which holds the whole conversation anew.

Most templates can tell the past otherwise at any turn, so the whole conversation is rendered to see it. One that writes
each message by itself, which is read off its syntax, cannot: there a turn renders what is new and no more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from dagger_exp.chat.template import EMPTY_THOUGHT, OPENED_THOUGHT, Refusal, Row, Template, Tokenizer
from dagger_exp.errors import LabelError
from dagger_exp.types import Message

CLOSING = "\n</think>\n\n"
"""A prompt may end with a thought that is open, or empty; nobody had the open one, and this ends it."""
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time needs no threads, which warn at a fork


class Prompt(NamedTuple):
    """The whole prompt of a turn, and what it adds to the turn before (`context_ids`).

    `rows` are its messages as templates take them; `text` is what the rendering of the next turn has to begin with.
    """

    prompt_ids: list[int]
    context_ids: list[int]
    starts_branch: bool
    text: str
    rows: list[Row]


class Chat:
    """Messages to token ids by a tokenizer's own chat template.

    Args:
        tokenizer: of a Hugging Face model.
        tools: JSON schemas of the tools that the template is to show.
        options: further arguments of the template, such as `enable_thinking` of Qwen3's.

    Raises:
        DataError: the tokenizer has no chat template or no end-of-message token.
        ConfigError: there are tools, and the template does not show them; raised later, too, by what renders a
            conversation that the template refuses.
    """

    def __init__(
        self, tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] = (), options: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer, self.tools = tokenizer, tools
        self.template = Template(tokenizer, tools, options or {})
        self.end_id = self.template.end_id

    def open(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt of a first turn."""
        return self._branch(self.template.rows(messages))

    def extend(self, before: Prompt, response_ids: Sequence[int], messages: Sequence[Message]) -> Prompt:
        """Return the prompt of a later turn.

        Args:
            before: prompt of the turn before.
            response_ids: what was executed then.
            messages: the whole conversation, that response and what came after it too.
        """
        new = self.template.rows(messages[len(before.rows) :], before.rows)
        text = self.template.render(self._past(before) + new)
        after = self._after_response(text, before.text, self._decoded(response_ids))
        if after is None:
            return self._branch(before.rows + new)
        context = self.encode(self.template.end + after)  # at once: an end token may take the white space after it
        if response_ids[-1] == self.end_id:  # else it was cut before it ended its message
            context = context[1:]
        text = before.text if self.template.tells_each_alone else text
        return Prompt([*before.prompt_ids, *response_ids, *context], context, False, text, before.rows + new)

    def response_ids(self, message: Message, prompt: Prompt) -> list[int]:
        """Return a message of the teacher as the student would have written it: its text and the end token.

        Raises:
            LabelError: the student's template does not write it, as its tool calls or its reasoning.
        """
        closing = CLOSING if prompt.text.rstrip().endswith("<think>") and not message.reasoning else ""
        is_text = not (message.tool_calls or message.reasoning)
        message = replace(message, content=self.template.harmless(message.content)) if is_text else message
        if is_text and not self.template.head:
            return [*self.encode(closing + message.content), self.end_id]
        body = self._written(message, prompt)
        return [*self.encode(body if message.reasoning else closing + EMPTY_THOUGHT.sub("", body)), self.end_id]

    def _written(self, message: Message, prompt: Prompt) -> str:
        """Return what the template writes for an answer, up to its end token; raises `LabelError`."""
        past, place, asked = self._past(prompt), len(prompt.rows), _before(prompt.text, message)
        try:
            whole = self.template.render([*past, self.template.row(message, place)], add_generation_prompt=False)
        except Refusal as error:
            raise _unwritten(message, error.reason) from error
        body, end, rest = whole[len(asked) :].partition(self.template.end)
        if not whole.startswith(asked) or not end:
            raise _unwritten(message, "it changes the prompt before them, or does not end them")
        if not self._is_told(past, message, place, whole, body + end + rest):
            raise _unwritten(message, "it leaves a part of them out")
        return body

    def parse(self, token_ids: Sequence[int]) -> Message:
        """Return the message that response tokens say."""
        return Message("assistant", self.template.read(self._decoded(token_ids)))

    def _past(self, prompt: Prompt) -> list[Row]:
        """Return the rows of a prompt that must be rendered again to see what follows them."""
        return prompt.rows[:1] if self.template.tells_each_alone else prompt.rows

    def _branch(self, rows: list[Row]) -> Prompt:
        text = self.template.render(rows)
        ids = self.encode(text)
        return Prompt(ids, ids, True, self.template.render(rows[:1]) if self.template.tells_each_alone else text, rows)

    def _answered(self, past: Sequence[Row], message: Message, place: int) -> str:
        return self.template.answered(past, self.template.row(message, place))

    def _is_told(self, past: list[Row], message: Message, place: int, whole: str, answer: str) -> bool:
        """Return whether a conversation that ends with an answer tells all of its message.

        It is seen after the first query alone where the answer is the same there: renderings take long.
        """
        roles = [row["role"] for row in past]
        first = past[: roles.index("user") + 1] if "user" in roles else past
        short = self._answered(first, message, place)
        if short == _before(self.template.render(first), message) + answer:
            past, whole = first, short
        return all(self._answered(past, less, place) != whole for less in _lessened(message))

    def _decoded(self, token_ids: Sequence[int]) -> str:
        ids = [i for i in token_ids if i != self.end_id]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without those that a tokenizer puts around one."""
        text = text.encode(errors="replace").decode()  # half of a surrogate pair has no tokens
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _after_response(self, text: str, asked: str, said: str) -> str | None:
        """Return what a rendering has after the end token of a response; None where it tells the past otherwise.

        What the template writes after that token (a line break, often) belongs to the context that follows.
        """
        before = OPENED_THOUGHT.sub("", asked)
        body, end, after = text[len(before) :].partition(self.template.end)
        is_same = text.startswith(before) and _told(body) == _told(asked[len(before) :] + said)
        return after if end and is_same else None


def _unwritten(message: Message, reason: str) -> LabelError:
    what = "tool calls or reasoning" if message.tool_calls or message.reasoning else "words"
    return LabelError(f"the student's chat template cannot write the teacher's {what}: {reason}.")


def _before(prompt: str, answer: Message) -> str:
    """Return the part of a prompt that stays before an answer: without a thought that the prompt began for nothing."""
    return prompt if answer.reasoning else OPENED_THOUGHT.sub("", prompt)


def _lessened(message: Message) -> Iterator[Message]:
    """Yield a message without its reasoning and without each of its calls; a template that tells them differs."""
    if message.reasoning.strip():
        yield replace(message, reasoning="")
    for index in range(len(message.tool_calls)):
        yield replace(message, tool_calls=message.tool_calls[:index] + message.tool_calls[index + 1 :])


def _told(answer: str) -> str:
    """Return what has to be the same in an answer that is told again."""
    return "".join(EMPTY_THOUGHT.sub("", answer).split())
