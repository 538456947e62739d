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

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from jinja2 import Environment, TemplateError, meta, nodes

from dagger_exp.errors import ConfigError, DataError, LabelError
from dagger_exp.types import Message, ToolCall

EMPTY_THOUGHT = re.compile(r"^\s*<think>\s*</think>\s*")
"""What some templates write before an answer that came without reasoning; nobody said it, so nobody learns it."""
OPENED_THOUGHT = re.compile(r"<think>\s*(</think>\s*)?$")
CLOSING = "\n</think>\n\n"
"""A prompt may end with a thought that is open, or empty; nobody had the open one, and this ends it."""
ANSWER = "4711"
"""Said once, to see what a template writes after it."""
CACHED_TEXTS = 4096
"""Observations that are rendered again with every later turn of their episode."""
TODAY = datetime(2026, 1, 1)  # noqa: DTZ001  no moment, but a date
"""For templates that write today's date: a prompt must not change with the day on which it is rendered."""
SYNTAX = Environment()  # noqa: S701  nothing is rendered with it
"""Reads what a template is made of."""
SYNTAX.globals.clear()  # a template may give their names to values of its own
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time needs no threads, which warn at a fork


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: Any
    eos_token_id: Any
    added_tokens_decoder: Any

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any: ...
    def encode(self, text: str, **options: Any) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], **options: Any) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...


class Prompt(NamedTuple):
    """The whole prompt of a turn, and what it adds to the turn before (`context_ids`).

    `rows` are its messages as templates take them; `text` is what the rendering of the next turn has to begin with.
    """

    prompt_ids: list[int]
    context_ids: list[int]
    starts_branch: bool
    text: str
    rows: list[dict[str, Any]]


class Chat:
    """Messages to token ids by a tokenizer's own chat template.

    Args:
        tokenizer: of a Hugging Face model.
        tools: JSON schemas of the tools that the template is to show.
        options: what the template takes beside, as `enable_thinking` of Qwen3's.

    Raises:
        DataError: the tokenizer has no chat template or no end-of-message token.
        ConfigError: there are tools, and the template does not show them; raised later, too, by what renders a
            conversation that the template refuses.
    """

    def __init__(
        self, tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]] = (), options: Mapping[str, Any] | None = None
    ) -> None:
        if not tokenizer.chat_template or tokenizer.eos_token_id is None:
            raise DataError("The student's tokenizer needs a chat_template and an eos_token that ends a message.")
        self.tokenizer = tokenizer
        self.options = dict(options or {})
        if "strftime_now" in str(tokenizer.chat_template):
            self.options.setdefault("strftime_now", TODAY.strftime)
        self.template_hash = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
        special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special[int(tokenizer.eos_token_id)] = str(tokenizer.decode([tokenizer.eos_token_id]))
        self._special = re.compile("|".join(map(re.escape, special.values())))
        self._tells_each_alone = tells_each_alone(tokenizer.chat_template)
        self._harmless = lru_cache(CACHED_TEXTS)(self._broken_up)
        self.end = special[int(tokenizer.eos_token_id)]
        self.end = self._end_of_message() or self.end
        self.end_id = next(i for i, token in special.items() if token == self.end)
        self._opens_answers = self._writes_before_an_answer()
        hello = [self._row(Message("user", "hello"))]
        without = self._render(hello)
        if tools:
            self.options["tools"] = list(tools)
            if self._render(hello) == without:
                raise ConfigError(
                    "the chat template of the student, or of a teacher in this process, shows no tools: choose a model "
                    "whose template does, or scaffold=bash, which needs none."
                )

    def open(self, messages: Sequence[Message]) -> Prompt:
        """Return the prompt of a first turn."""
        return self._branch([self._row(message) for message in messages])

    def extend(self, before: Prompt, response_ids: Sequence[int], messages: Sequence[Message]) -> Prompt:
        """Return the prompt of a later turn.

        Args:
            before: prompt of the turn before.
            response_ids: what was executed then.
            messages: the whole conversation, that response and what came after it too.
        """
        new = [self._row(message) for message in messages[len(before.rows) :]]
        text = self._render(self._past(before) + new)
        after = self._after_response(text, before.text, self.parse(response_ids).content)
        if after is None:
            return self._branch(before.rows + new)
        context = self._encode(self.end + after)  # at once: an end token may take the white space after it
        if response_ids[-1] == self.end_id:  # else it was cut before it ended its message
            context = context[1:]
        text = before.text if self._tells_each_alone else text
        return Prompt([*before.prompt_ids, *response_ids, *context], context, False, text, before.rows + new)

    def response_ids(self, message: Message, prompt: Prompt) -> list[int]:
        """Return a message of the teacher as the student would have written it: its text and the end token.

        Raises:
            LabelError: the student's template does not write it, as its tool calls or its reasoning.
        """
        is_text = not (message.tool_calls or message.reasoning)
        message = replace(message, content=self._harmless(message.content)) if is_text else message
        if is_text and not self._opens_answers:
            closing = CLOSING if prompt.text.rstrip().endswith("<think>") else ""
            return [*self._encode(closing + message.content), self.end_id]
        past = self._past(prompt)
        whole = self._answered(past, message)
        body, end, rest = whole[len(prompt.text) :].partition(self.end)
        if not whole.startswith(prompt.text) or not end or not self._is_told(past, message, whole, body + end + rest):
            what = "answer" if is_text else "tool calls or reasoning"
            raise LabelError(f"the student's chat template cannot write the teacher's {what}.")
        return [*self._encode(body if message.reasoning else EMPTY_THOUGHT.sub("", body)), self.end_id]

    def parse(self, token_ids: Sequence[int]) -> Message:
        """Return the message that response tokens say."""
        ids = [i for i in token_ids if i != self.end_id]
        said = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return Message("assistant", str(said).strip())

    def _past(self, prompt: Prompt) -> list[dict[str, Any]]:
        """Return of the messages of a prompt those that must be rendered again to see what follows them."""
        return prompt.rows[:1] if self._tells_each_alone else prompt.rows

    def _branch(self, rows: list[dict[str, Any]]) -> Prompt:
        text = self._render(rows)
        ids = self._encode(text)
        return Prompt(ids, ids, True, self._render(rows[:1]) if self._tells_each_alone else text, rows)

    def _render(self, rows: list[dict[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """Return a conversation as text; raises `ConfigError` where the template refuses it, as for a role."""
        try:
            return self.tokenizer.apply_chat_template(
                rows, tokenize=False, add_generation_prompt=add_generation_prompt, **self.options
            )
        except (TemplateError, TypeError, ValueError) as error:  # the last two: arguments of a call that are no mapping
            said = " ".join(str(error).split()).rstrip(".")
            raise ConfigError(
                "the chat template of the student, or of a teacher in this process, refuses the conversation "
                f"({said}): choose a model whose template takes it."
            ) from error

    def _answered(self, past: list[dict[str, Any]], message: Message) -> str:
        """Return a conversation that ends with a message of the teacher; nothing where the template refuses it."""
        try:
            return self._render([*past, self._row(message)], add_generation_prompt=False)
        except ConfigError:  # as for two calls, or for arguments that are no mapping
            return ""

    def _is_told(self, past: list[dict[str, Any]], message: Message, whole: str, answer: str) -> bool:
        """Return whether a conversation that ends with an answer tells all of its message.

        It is seen after the first query alone where the answer is the same there: renderings take long.
        """
        roles = [row["role"] for row in past]
        first = past[: roles.index("user") + 1] if "user" in roles else past
        short = self._answered(first, message)
        if short == self._render(first) + answer:
            past, whole = first, short
        return all(self._answered(past, less) != whole for less in _lessened(message))

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
        whole = self._answered([self._row(Message("user", "hello"))], Message("assistant", ANSWER))
        found = self._special.match(whole.partition(ANSWER)[2].lstrip())
        return found[0] if found else None

    def _writes_before_an_answer(self) -> bool:
        """Return whether the template writes more into an answer than its text, as the name of a channel before it."""
        hello = [self._row(Message("user", "hello"))]
        whole, asked = self._answered(hello, Message("assistant", ANSWER)), OPENED_THOUGHT.sub("", self._render(hello))
        return whole.startswith(asked) and not EMPTY_THOUGHT.sub("", whole[len(asked) :]).startswith(ANSWER)

    def _broken_up(self, text: str) -> str:
        """Break up what would be read as a special token, with a space after its first character."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def _encode(self, text: str) -> list[int]:
        text = text.encode(errors="replace").decode()  # half of a surrogate pair has no tokens
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _after_response(self, text: str, asked: str, said: str) -> str | None:
        """Return what a rendering has after the end token of a response; None where it tells the past otherwise.

        What the template writes after that token (a line break, often) belongs to the context that follows.
        """
        before = OPENED_THOUGHT.sub("", asked)
        body, end, after = text[len(before) :].partition(self.end)
        is_same = text.startswith(before) and _told(body) == _told(asked[len(before) :] + said)
        return after if end and is_same else None


def tells_each_alone(template: Any) -> bool:
    """Return whether a chat template is one loop that writes each message without a look at any other or at its place.

    Then the text of more messages is the text of fewer, with theirs at its end. It is read off the syntax, and only
    what cannot be otherwise counts: outside of the loop nothing knows of messages, and inside it no name but that of
    the message has a value that another pass of the loop could have changed.
    """
    try:
        body = SYNTAX.parse(str(template)).body
    except TemplateError:  # as for a `break`, which is of an extension
        return False
    loops = [node for node in body if isinstance(node, nodes.For)]
    rest = [node for node in body if isinstance(node, nodes.Output | nodes.If | nodes.Assign)]
    rest = [node for node in rest if not node.find(nodes.Macro)]  # one may change what stands outside of the loop
    if len(loops) != 1 or len(body) != 1 + len(rest) or "messages" in _names(rest):
        return False
    loop = loops[0]
    over = isinstance(loop.iter, nodes.Name) and loop.iter.name == "messages" and isinstance(loop.target, nodes.Name)
    changeable = {name.name for node in rest for name in node.find_all(nodes.Name) if name.ctx == "store"}
    return over and not (loop.test or loop.else_ or (changeable | {"loop", "messages"}) & _names(loop.body))


def _names(body: Sequence[nodes.Node]) -> set[str]:
    """Return the names in a piece of a template that get their value outside of it."""
    piece = nodes.Template(list(body), lineno=1)
    piece.set_environment(SYNTAX)
    return meta.find_undeclared_variables(piece)


def _lessened(message: Message) -> Iterator[Message]:
    """Yield a message without its reasoning and without each of its calls; a template that tells them differs."""
    if message.reasoning.strip():
        yield replace(message, reasoning="")
    for index in range(len(message.tool_calls)):
        yield replace(message, tool_calls=message.tool_calls[:index] + message.tool_calls[index + 1 :])


def _told(answer: str) -> str:
    """Return what has to be the same in an answer that is told again."""
    return "".join(EMPTY_THOUGHT.sub("", answer).split())
