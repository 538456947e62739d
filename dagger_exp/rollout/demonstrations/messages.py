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
TEXTS = ("text", "input_text", "output_text")
THOUGHTS = ("thinking", "redacted_thinking", "reasoning", "reasoning_text", "summary_text")
"""Kinds of the parts of a message's content: what it says, and what it thinks."""


class Unreadable(DataError):  # noqa: N818  it is counted, not raised to anyone
    """A trajectory is of no use; the text is the reason under which it is counted."""


def read_message(raw: Mapping[str, Any]) -> Message:
    """Return a message of the form that OpenAI's chat API has.

    Raises:
        Unreadable: of an unknown role, or with something else than text.
    """
    raw = _from_responses(raw)
    if raw["role"] not in ROLES:
        raise Unreadable(f"a message has the role {raw['role']!r}")
    calls = tuple(_read_call(call.get("function", call)) for call in raw.get("tool_calls") or ())
    parts = raw.get("content")
    parts = parts if isinstance(parts, list) else [{"type": "text", "text": parts or ""}]
    text = "\n".join(_text(part) for part in parts if part.get("type") not in THOUGHTS)
    return Message(raw["role"], text, _reasoning(raw, parts), calls)


def _from_responses(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an answer or a tool's output of OpenAI's Responses API in the form of its chat API."""
    if raw.get("type") == "function_call_output":
        return {"role": "tool", "content": raw["output"]}
    if "role" in raw or "output" not in raw:
        return raw
    items = [item for item in raw["output"] if item.get("type") in ("message", "reasoning", "function_call")]
    parts = [part for item in items for part in item.get("content") or item.get("summary") or ()]
    calls = [item for item in items if item["type"] == "function_call"]
    return {"role": "assistant", "content": parts, "tool_calls": calls}


def _reasoning(raw: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> str:
    """Return the thoughts of a message, which harnesses keep in one of several places."""
    found = raw.get("reasoning_content") or raw.get("reasoning")
    if isinstance(found, str) and found:
        return found
    blocks = [*(raw.get("thinking_blocks") or ()), *(part for part in parts if part.get("type") in THOUGHTS)]
    return "\n".join(str(block.get("thinking") or block.get("text") or "") for block in blocks).strip()


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


def _text(part: Mapping[str, Any]) -> str:
    if part.get("type") not in TEXTS:
        raise Unreadable("a message shows something else than text")
    return str(part["text"])


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
