"""What was said? Chat messages as other programs write them, and the tool calls in them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dagger_exp.errors import DataError
from dagger_exp.scaffolds.calls import parameters
from dagger_exp.types import Message, ToolCall

CALL = re.compile(
    r"(?:<tool_call>\s*)?<function=(?P<name>[^>\s]+)>(?P<body>.*?)</function>(?:\s*</tool_call>)?"
    r"|<tool_call>\s*(?P<json>\{.*?\})\s*</tool_call>",
    re.DOTALL,
)
"""A call that was written as text: with a tag for each parameter, or as JSON."""
ROLES = ("system", "user", "assistant", "tool")


class Unreadable(DataError):  # noqa: N818  it is counted, not raised to anyone
    """A trajectory is of no use; the text is the reason under which it is counted."""


def read_message(raw: Mapping[str, Any]) -> Message:
    """Return a message of the form that OpenAI's chat API has.

    Raises:
        Unreadable: of an unknown role, or with something else than text.
    """
    if raw["role"] not in ROLES:
        raise Unreadable(f"a message has the role {raw['role']!r}")
    calls = tuple(_read_call(call["function"]) for call in raw.get("tool_calls") or ())
    return Message(raw["role"], _text(raw.get("content")), str(raw.get("reasoning_content") or ""), calls)


def with_text_calls(message: Message, tools: Sequence[Mapping[str, Any]]) -> Message:
    """Return a message of the assistant with the calls that its text ends in as calls.

    It stays as it is where there are none, or where text follows them.
    """
    found = list(CALL.finditer(message.content))
    if message.role != "assistant" or message.tool_calls or not found:
        return message
    begin = found[0].start()
    if CALL.sub("", message.content[begin:]).strip():
        return message
    try:
        calls = tuple(_read_text_call(match, tools) for match in found)
    except (ValueError, KeyError, TypeError):  # it is no call after all
        return message
    return replace(message, content=message.content[:begin].rstrip(), tool_calls=calls)


def as_one(messages: Sequence[Message]) -> Message:
    """Return what was said between two turns as the one observation that it is."""
    if len(messages) == 1:
        return messages[0]
    roles = {message.role for message in messages}
    return Message(roles.pop() if len(roles) == 1 else "user", "\n".join(message.content for message in messages))


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if any(part.get("type") != "text" for part in content):
        raise Unreadable("a message shows something else than text")
    return "\n".join(part["text"] for part in content)


def _read_call(function: Mapping[str, Any]) -> ToolCall:
    arguments = function["arguments"]
    return ToolCall(function["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))


def _read_text_call(found: re.Match[str], tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    if found["json"]:
        return _read_call(json.loads(found["json"]))
    kinds = _kinds(found["name"], tools)
    arguments = {name: _value(text, kinds.get(name, "string")) for name, text in parameters(found["body"])}
    return ToolCall(found["name"], json.dumps(arguments))


def _kinds(name: str, tools: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the types of a tool's parameters, as its schema has them."""
    functions = [tool.get("function", tool) for tool in tools]
    schemas = [function.get("parameters", {}) for function in functions if function.get("name") == name]
    return {key: str(node.get("type")) for schema in schemas for key, node in schema.get("properties", {}).items()}


def _value(text: str, kind: str) -> Any:
    return text if kind == "string" else json.loads(text)
