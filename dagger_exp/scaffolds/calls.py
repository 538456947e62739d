"""Which tool does a text call? The two formats of Qwen's models, JSON and tags, read and held against the schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from dagger_exp.errors import MalformedAction
from dagger_exp.types import ToolCall

OPEN, CLOSE = "<tool_call>", "</tool_call>"
JSON_FORM = '<tool_call>\n{"name": "execute_bash", "arguments": {"command": "ls"}}\n</tool_call>'
TAG_FORM = "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"
FUNCTION = re.compile(r"<function=([^>\n]*)>(.*?)</function>(?=\s*</tool_call>)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\n]*)>\n?(.*?)\n?", re.DOTALL)
PARAMETER_END = re.compile(r"</parameter>\s*(?=<parameter=|\Z)")
"""A value may hold what ends it, as long as no other parameter or the end of the call stands behind that."""
THOUGHT_END = "</think>"
CACHED_TEXTS = 4096
"""An answer is read again with every later turn of its episode."""
NO_JSON = (ValueError, RecursionError)
"""What reading a text as JSON raises: one that is nested too deeply is none either."""
TYPES: Mapping[str, type] = {"string": str, "integer": int, "array": list}


class Found(NamedTuple):
    """A call as it was written, the text before it, and whether its values are texts of which types must be made."""

    name: str
    arguments: Any
    before: str = ""
    is_tagged: bool = False


def after_thought(text: str) -> str:
    """Return what a model says when it has thought; a call within a thought is not meant.

    A chat template may have begun the thought, so that the text has its end alone.
    """
    _, ended, after = text.partition(THOUGHT_END)
    return after if ended or text.lstrip().startswith("<think>") else text


@lru_cache(maxsize=CACHED_TEXTS)
def find_call(text: str) -> Found:
    """Return the one call of a text; raises `MalformedAction`."""
    try:
        return _find_call(text, after_thought(text))
    except MalformedAction:
        if (whole := _in_whole(text)) is None:
            raise
        return whole


def _in_whole(text: str) -> Found | None:
    """Return the call whose arguments hold what looks like the end of a thought."""
    with suppress(MalformedAction):
        if THOUGHT_END in str((found := _find_call(text, text)).arguments):
            return found
    return None


def _find_call(text: str, said: str) -> Found:
    _, opened, rest = said.partition(OPEN)
    if not opened:
        raise malformed("There is no tool call.", text)
    before, rest = text[: len(text) - len(rest) - len(OPEN)].strip(), rest.lstrip()
    name, arguments, after = (_tagged if rest.startswith("<function=") else _json)(rest)
    after = after.lstrip()
    if not after.startswith(CLOSE):
        raise malformed(f"The call does not end with {CLOSE}.", text)
    if OPEN in after:
        raise malformed("There are several calls, and none was run.", text)
    if after.removeprefix(CLOSE).strip():
        raise malformed("Something follows the call, and the call was not run: end with it.", text)
    return Found(name, arguments, before, is_tagged=rest.startswith("<function="))


def checked(found: Found, tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    """Return a call that fits the schemas of the tools, in one spelling; raises `MalformedAction`."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    if found.name not in schemas:
        raise MalformedAction(f"There is no tool {found.name!r}; the tools are {', '.join(schemas)}.")
    schema = schemas[found.name]
    if not isinstance(found.arguments, dict):
        raise MalformedAction(f"The arguments of {found.name} must be a JSON object, {_shape(schema)}.")
    arguments = {key: value for key, value in found.arguments.items() if value is not None}
    known = schema["properties"]
    problems = [f"it takes no {key!r}" for key in arguments if key not in known]
    problems += [f"{key!r} is missing" for key in schema["required"] if key not in arguments]
    if found.is_tagged:
        arguments = {key: _typed(value, known.get(key, {})) for key, value in arguments.items()}
    problems += [_problem(key, arguments[key], known[key]) for key in arguments if key in known]
    if any(problems):
        raise MalformedAction(
            f"The call of {found.name} is wrong: {', '.join(filter(None, problems))}. Its arguments: {_shape(schema)}."
        )
    in_order = {key: arguments[key] for key in known if key in arguments}
    return ToolCall(found.name, json.dumps(in_order, ensure_ascii=False))


def malformed(problem: str, text: str = "") -> MalformedAction:
    """Return the error that says what is wrong and shows the right form, in the format that the text tries."""
    return MalformedAction(
        f"{problem} Call exactly one tool, in this form:\n\n{TAG_FORM if '<function=' in text else JSON_FORM}"
    )


def loaded(arguments: str) -> Any:
    """Return arguments that are JSON; raises `MalformedAction`."""
    try:
        return json.loads(arguments)
    except NO_JSON as error:
        raise malformed(f"The arguments are no JSON ({error}).") from error


def parameters(body: str) -> list[tuple[str, str]]:
    """Return the names and values of tagged parameters; raises `ValueError` where one is not closed."""
    body = body.replace("\r\n", "\n") if body.startswith("\r\n") else body
    *texts, rest = PARAMETER_END.split(body.strip())
    found = [PARAMETER.fullmatch(text) for text in texts]
    if rest or None in found:
        raise ValueError("a parameter is not closed")
    return [(pair[1].strip(), pair[2]) for pair in found if pair]


def written(call: ToolCall) -> str:
    """Return a call as text, whatever its arguments are."""
    return f'{OPEN}\n{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}\n{CLOSE}'


def _json(rest: str) -> tuple[str, Any, str]:
    """Return name, arguments and what stands after the JSON; a string in it may hold any tag."""
    try:
        value, end = json.JSONDecoder().raw_decode(rest)
    except NO_JSON as error:
        raise malformed(f"The call is no JSON ({error}).") from error
    is_call = isinstance(value, dict) and set(value) == {"name", "arguments"} and isinstance(value["name"], str)
    if not is_call:
        raise malformed("The call must be a JSON object with a name and arguments, and with nothing else.")
    return value["name"], value["arguments"], rest[end:]


def _tagged(rest: str) -> tuple[str, dict[str, str], str]:
    found = FUNCTION.match(rest)
    if found is None:
        raise malformed("The call does not end with </function>.", rest)
    try:
        pairs = parameters(found[2])
    except ValueError as error:
        raise malformed("A parameter is not closed.", rest) from error
    if len(dict(pairs)) != len(pairs):
        raise malformed("A parameter stands there twice.", rest)
    return found[1].strip(), dict(pairs), rest[found.end() :]


def _typed(text: str, schema: Mapping[str, Any]) -> Any:
    """Return the value that a text stands for; the text itself where it stands for none."""
    if schema.get("type", "string") == "string":
        return text
    try:
        return json.loads(text)
    except NO_JSON:
        return text


def _problem(key: str, value: Any, schema: Mapping[str, Any]) -> str:
    """Return what is wrong with a value; nothing where nothing is."""
    if not _fits(value, schema):
        return f"{key!r} must be {_kind(schema)}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{key!r} must be one of {', '.join(schema['enum'])}"
    return ""


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    if not isinstance(value, TYPES[schema["type"]]) or isinstance(value, bool):
        return False
    return all(_fits(item, schema["items"]) for item in value) if schema["type"] == "array" else True


def _kind(schema: Mapping[str, Any]) -> str:
    return f"array of {schema['items']['type']}" if schema["type"] == "array" else schema["type"]


def _shape(schema: Mapping[str, Any]) -> str:
    """Return the arguments that a tool takes, in short."""
    optional = {key: "" if key in schema["required"] else ", optional" for key in schema["properties"]}
    return "; ".join(f"{key} ({_kind(value)}{optional[key]})" for key, value in schema["properties"].items()) or "none"
