"""What does a chat template write, and in which form does it take a message? Found by rendering short conversations.

Templates differ: some refuse a system message, take a text only as a list of parts, know a thought by another key, want
an id for each call, or write the name of a channel before an answer. `Template` hides these differences, so that the
rest of the package knows messages and text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from jinja2 import TemplateError

from dagger_exp.chat.syntax import tells_each_alone
from dagger_exp.errors import ConfigError, DataError
from dagger_exp.types import Message, ToolCall

Row = dict[str, Any]
"""A message as templates take it; its content is always text here."""
EMPTY_THOUGHT = re.compile(r"^\s*<think>\s*</think>\s*")
"""What some templates write before an answer that came without reasoning; nobody said it, so nobody learns it."""
OPENED_THOUGHT = re.compile(r"<think>\s*(</think>\s*)?$")
SYSTEM, QUESTION, ANSWER, WHY = "4710", "4711", "4712", "4713"
"""Said to a template to see what it writes around them."""
ASKED: list[Row] = [{"role": "user", "content": QUESTION}]
THOUGHT_KEYS = ("reasoning_content", "thinking", "reasoning")
CACHED_TEXTS = 4096
"""Observations that are rendered again with every later turn of their episode."""
TODAY = datetime(2026, 1, 1)  # noqa: DTZ001  no moment, but a date
"""For templates that write today's date: a prompt must not change with the day on which it is rendered."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    chat_template: Any
    eos_token_id: Any
    added_tokens_decoder: Any

    def apply_chat_template(self, conversation: list[dict[str, Any]], **options: Any) -> Any: ...
    def encode(self, text: str, **options: Any) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], **options: Any) -> Any: ...
    def get_vocab(self) -> dict[str, int]: ...


class Refusal(ConfigError):  # noqa: N818  it is the template's own
    """A chat template raised an error; `reason` is what it said."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            "the chat template of the student, or of a teacher in this process, refuses the conversation "
            f"({reason}): choose a model whose template takes it."
        )
        self.reason = reason


class Thought(NamedTuple):
    """The key under which a template takes a thought, and what it writes before and after it."""

    key: str
    begin: str
    end: str


class Template:
    """The chat template of a tokenizer.

    Args:
        tokenizer: of a Hugging Face model.
        tools: JSON schemas of the tools that the template is to show.
        options: further arguments of the template, such as `enable_thinking` of Qwen3's.

    Attributes:
        end: the special token that ends an answer.
        ends_answers: whether the template writes it; else it is the tokenizer's.
        head: text that the template writes into an answer before what is said, such as the name of a channel.
        thought: how it writes a thought; None if it writes none.

    Raises:
        DataError: the tokenizer has no chat template or no end-of-message token.
        ConfigError: the template does not show the tools; later, it refuses a conversation.
    """

    def __init__(self, tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> None:
        if not tokenizer.chat_template or tokenizer.eos_token_id is None:
            raise DataError("The student's tokenizer needs a chat_template and an eos_token that ends a message.")
        self.tokenizer, self.options = tokenizer, dict(options)
        if "strftime_now" in str(tokenizer.chat_template):
            self.options.setdefault("strftime_now", TODAY.strftime)
        self.hash = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()[:16]
        special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        special[int(tokenizer.eos_token_id)] = str(tokenizer.decode([tokenizer.eos_token_id]))
        self._special = re.compile("|".join(map(re.escape, special.values())))
        self.harmless = lru_cache(CACHED_TEXTS)(self._broken_up)
        self._merges_system = self._takes_parts = False
        if not self._shows(QUESTION, ASKED):
            self._takes_parts = True
            self._takes_parts = self._shows(QUESTION, ASKED)
        self._merges_system = not self._shows(SYSTEM, [{"role": "system", "content": SYSTEM}, *ASKED])
        self.tells_each_alone = tells_each_alone(tokenizer.chat_template) and not self._merges_system
        asked = self.render(ASKED)
        self._opens_thought = asked.rstrip().endswith("<think>")
        self._asked = OPENED_THOUGHT.sub("", asked)
        self.head, end = self._around_an_answer()
        self.ends_answers = bool(end)
        self.end = end or special[int(tokenizer.eos_token_id)]
        self.end_id = next(i for i, token in special.items() if token == self.end)
        self.thought = self._written_thought()
        if tools:
            self.options["tools"] = list(tools)
            if self.render(ASKED) == asked:
                raise ConfigError(
                    "the chat template of the student, or of a teacher in this process, shows no tools: choose a model "
                    "whose template does, or scaffold=bash, which needs none."
                )

    def may_think(self) -> bool:
        """Return whether an answer may begin with a thought: the template writes one, and it is not switched off."""
        asked = self.render(ASKED)
        if (self.thought is None and not self._opens_thought) or asked.rstrip().endswith("</think>"):
            return False
        off, on = (self.render(ASKED, enable_thinking=switch) for switch in (False, True))
        return off == on or asked != off

    def render(self, rows: Sequence[Row], *, add_generation_prompt: bool = True, **options: Any) -> str:
        """Return a conversation as text; raises `Refusal`, for example of a role."""
        try:
            return self.tokenizer.apply_chat_template(
                self._taken(rows), tokenize=False, add_generation_prompt=add_generation_prompt, **self.options | options
            )
        except (TemplateError, TypeError, ValueError) as error:  # the last two: arguments of a call that are no mapping
            raise Refusal(" ".join(str(error).split()).rstrip(".")) from error

    def answered(self, rows: Sequence[Row], answer: Row) -> str:
        """Return a conversation that ends with an answer; an empty text if the template refuses it."""
        try:
            return self.render([*rows, answer], add_generation_prompt=False)
        except Refusal:  # for example two calls, or arguments that are no mapping
            return ""

    def rows(self, messages: Sequence[Message], before: Sequence[Row] = ()) -> list[Row]:
        """Return messages as the template takes them; those of tools get the id and the name of the call before them.

        Args:
            messages: what is new.
            before: the rows of the conversation before them.
        """
        rows = list(before)
        for message in messages:
            row = self.row(message, len(rows))
            calls = rows[-1].get("tool_calls") if rows else None
            if message.role == "tool" and calls:
                row |= {"tool_call_id": calls[0]["id"], "name": calls[0]["function"]["name"]}
            rows.append(row)
        return rows[len(before) :]

    def row(self, message: Message, place: int) -> Row:
        """Return a message as the template takes it; an observation that spells a control token does not become one.

        The words of the student stay as they are, except for the end token, which it can only have spelled.
        """
        is_own = message.role == "assistant" and not (message.reasoning or message.tool_calls)
        if is_own:
            message = self._with_thought_apart(message)
        safe = self._without_end if is_own else self.harmless
        row: Row = {"role": message.role, "content": safe(message.content)}
        if message.reasoning:
            row[self.thought.key if self.thought else THOUGHT_KEYS[0]] = safe(message.reasoning)
        if message.tool_calls:
            calls = enumerate(message.tool_calls)
            row["tool_calls"] = [self._call(call, f"call{place:04d}{index}") for index, call in calls]
        return row

    def read(self, text: str) -> str:
        """Return the text of a response as scaffolds read it: without its head, its thought between `<think>` tags."""
        text = text.strip()
        if self.thought and self.thought.end != "</think>":
            thought, ended, answer = text.partition(self.thought.end)
            if ended and thought.startswith(self.thought.begin):
                thought = thought.removeprefix(self.thought.begin).strip()
                return f"<think>\n{thought}\n</think>\n\n{answer.strip()}"
        return text.removeprefix(self.head.strip()).strip()

    def _call(self, call: ToolCall, call_id: str) -> dict[str, Any]:
        """Return a call as templates take it: its arguments as a mapping, or as the text that is none."""
        try:
            arguments = json.loads(self.harmless(json.dumps(json.loads(call.arguments), ensure_ascii=False)))
        except ValueError:
            arguments = self.harmless(call.arguments)
        return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": arguments}}

    def _with_thought_apart(self, message: Message) -> Message:
        """Return what the student said with the thought that it begins with as its reasoning."""
        thought, ended, answer = message.content.partition("</think>")
        is_begun = thought.lstrip().startswith("<think>")
        if not ended or not (is_begun or self._opens_thought):
            return message
        if self.thought is None:  # the template may look for a thought in the text
            return message if is_begun else replace(message, content=f"<think>\n{message.content}")
        return replace(message, reasoning=thought.strip().removeprefix("<think>").strip(), content=answer.strip())

    def _taken(self, rows: Sequence[Row]) -> list[Row]:
        """Return rows in the form that the template takes."""
        if self._merges_system and len(rows) > 1 and rows[0]["role"] == "system":
            rows = [{**rows[1], "content": f"{rows[0]['content']}\n\n{rows[1]['content']}"}, *rows[2:]]
        if self._takes_parts:
            return [{**row, "content": [{"type": "text", "text": row["content"]}]} for row in rows]
        return list(rows)

    def _shows(self, text: str, rows: Sequence[Row]) -> bool:
        try:
            return text in self.render(rows)
        except Refusal:
            return False

    def _around_an_answer(self) -> tuple[str, str]:
        """Return what the template writes into an answer before it, and the special token after it, if there is one.

        The end token of a base model, which ends a text, is not the one that ends a message.
        """
        whole = self.answered(ASKED, {"role": "assistant", "content": ANSWER})
        before, _, after = whole.partition(ANSWER)
        found = self._special.match(after.lstrip())
        head = EMPTY_THOUGHT.sub("", before[len(self._asked) :]) if before.startswith(self._asked) else ""
        return head, found[0] if found else ""

    def _written_thought(self) -> Thought | None:
        """Return how the template writes a thought, if it does."""
        for key in THOUGHT_KEYS:
            whole = self.answered(ASKED, {"role": "assistant", "content": ANSWER, key: WHY})
            begin, written, rest = whole[len(self._asked) :].partition(WHY)
            if written and whole.startswith(self._asked) and ANSWER in rest:
                return Thought(key, begin.strip(), rest.partition(ANSWER)[0].strip())
        return None

    def _without_end(self, text: str) -> str:
        return text.replace(self.end, self.harmless(self.end))

    def _broken_up(self, text: str) -> str:
        """Break up what would be read as a special token, with a space after its first character."""
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
