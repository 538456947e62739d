"""Can an episode be one conversation that grows? Two turns are tried with a template before anything is paid for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dagger_exp.chat.conversation import Chat, Prompt
from dagger_exp.chat.template import ANSWER, QUESTION, SYSTEM, WHY, Refusal
from dagger_exp.errors import ConfigError, LabelError, MalformedAction
from dagger_exp.protocols import Scaffold
from dagger_exp.types import Actor, Message, ToolCall

OPENING = (Message("system", SYSTEM), Message("user", QUESTION))
OBSERVED = ("4714", "4715")
SWITCHES: Sequence[Mapping[str, bool]] = (
    {"enable_thinking": False},
    {"preserve_thinking": True},
    {"truncate_history_thinking": False},
    {"clear_thinking": False},
    {"enable_thinking": True},
)
"""Options of templates in use that switch thoughts off or on, or keep those of earlier turns."""
SAMPLES = {"string": "ls", "integer": 1, "array": []}
"""A value of each type that an argument may have."""


def check_student(chat: Chat, scaffold: Scaffold | None, *, thoughts: bool = False) -> None:
    """Refuse a student whose template would fail in the midst of an episode, or start a branch at every turn.

    Args:
        chat: of the student.
        scaffold: reads the student's calls; None if actions are plain text.
        thoughts: whether labels hold the teacher's thoughts.

    Raises:
        ConfigError: the template's own reason, and what to choose instead.
    """
    if problem := _problem(chat, scaffold, thoughts):
        raise ConfigError(f"the chat template of the student {problem}: {_cure(chat, scaffold, thoughts)}.")


def check_teacher(chat: Chat, scaffold: Scaffold | None) -> None:
    """Refuse a teacher in this process whose template cannot write calls, or whose calls the scaffold cannot read.

    Raises:
        ConfigError: the template's own reason, and what to choose instead.
    """
    if not (chat.tools and scaffold):
        return
    call = _call(chat)
    if problem := _unread(chat, scaffold, call):
        raise ConfigError(f"the chat template of the teacher {problem}: choose another teacher, or scaffold=bash.")
    chat.open([*OPENING, Message("assistant", "", tool_calls=(call,)), Message("tool", OBSERVED[0])])


def _problem(chat: Chat, scaffold: Scaffold | None, thoughts: bool) -> str:
    """Return what the template does wrong, as the rest of a sentence; an empty text if nothing."""
    if not chat.template.ends_answers:
        return "writes no special token after an answer"
    if thoughts and chat.template.thought is None:
        return "writes no thoughts, which teacher.keep_reasoning=true makes a part of labels"
    if chat.tools and scaffold and (problem := _unread(chat, scaffold, _call(chat))):
        return problem
    tried = (_tried(chat, answer, role) for answer, role in _trials(chat, thoughts))
    return next(filter(None, tried), "")


def _trials(chat: Chat, thoughts: bool) -> Iterator[tuple[Message, str]]:
    """Yield answers, and the role that answers them."""
    yield Message("assistant", ANSWER), "user"
    call, role = ((_call(chat),), "tool") if chat.tools else ((), "user")
    if call:
        yield Message("assistant", "", tool_calls=call), role
    if thoughts or chat.template.may_think():
        yield Message("assistant", "" if call else ANSWER, WHY, call), role


def _call(chat: Chat) -> ToolCall:
    """Return a call of the first tool with the arguments that it requires."""
    tool = chat.tools[0]["function"]
    schema: dict[str, Any] = tool.get("parameters", {})
    kinds = {name: schema["properties"][name].get("type") for name in schema.get("required", ())}
    return ToolCall(tool["name"], json.dumps({name: SAMPLES.get(kind, "ls") for name, kind in kinds.items()}))


def _tried(chat: Chat, answer: Message, role: str) -> str:
    """Return what goes wrong when the teacher gives an answer, and then the student."""
    what = "thoughts" if answer.reasoning else "tool calls" if answer.tool_calls else "answers"
    messages = [*OPENING]
    try:
        prompt = chat.open(messages)
        for observed, actor in zip(OBSERVED, (Actor.TEACHER, Actor.STUDENT), strict=True):
            said, ids = _said(chat, answer, prompt, actor)
            messages += [said, Message(role, observed)]
            prompt = chat.extend(prompt, ids, messages)
            if prompt.starts_branch:
                return f"changes the {what} of earlier turns, so that every turn would repeat the whole conversation"
        shown = chat.template.render(prompt.rows)
    except (Refusal, LabelError) as error:
        return _refuses(what, error)
    is_lost = any(text not in shown for text in OBSERVED)
    return f"leaves out the observations that follow {what}" if is_lost else ""


def _said(chat: Chat, answer: Message, prompt: Prompt, actor: Actor) -> tuple[Message, list[int]]:
    """Return an answer as it is executed, and its tokens; of a small vocabulary they may say other words."""
    if answer.reasoning and chat.template.thought is None:  # in a prompt that opens it; no teacher can write it
        ids = [*chat.encode(f"{WHY}\n</think>\n\n{ANSWER}"), chat.end_id]
        return chat.parse(ids), ids
    ids = chat.response_ids(answer, prompt)
    is_text = not (answer.reasoning or answer.tool_calls)
    return (chat.parse(ids) if is_text or actor is Actor.STUDENT else answer), ids


def _refuses(what: str, error: Refusal | LabelError) -> str:
    reason = error.reason if isinstance(error, Refusal) else str(error).rpartition(": ")[2].rstrip(".")
    return f"refuses {what} ({reason})"


def _unread(chat: Chat, scaffold: Scaffold, call: ToolCall) -> str:
    """Return what is wrong if the scaffold reads another call than the template has written."""
    message = Message("assistant", "", tool_calls=(call,))
    try:
        expected = scaffold.read(message)
    except MalformedAction:  # the sample does not suit the tool
        return ""
    try:
        ids = chat.response_ids(message, chat.open(OPENING))
    except LabelError as error:
        return _refuses("tool calls", error)
    said = chat.parse(ids)
    try:
        is_read = scaffold.read(said) == expected
    except MalformedAction:
        is_read = False
    return "" if is_read else f"writes tool calls in a form that the scaffold does not read ({said.content!r:.80})"


def _cure(chat: Chat, scaffold: Scaffold | None, thoughts: bool) -> str:
    """Return what to choose instead, as far as it was tried and works."""
    if switch := _switch(chat, chat.tools, scaffold, thoughts, SWITCHES):
        return f"set {switch}"
    others = ["another model"]
    if chat.tools and (switch := _switch(chat, (), None, thoughts, ({}, *SWITCHES))) is not None:
        others.append("scaffold=bash" + (f" and {switch}" if switch else ""))
    if thoughts:
        others.append("teacher.keep_reasoning=false")
    return f"choose {', or '.join(others)}"


def _switch(
    chat: Chat,
    tools: Sequence[Mapping[str, Any]],
    scaffold: Scaffold | None,
    thoughts: bool,
    switches: Sequence[Mapping[str, bool]],
) -> str | None:
    """Return the first option with which the template does nothing wrong, as it is typed; None if none helps."""
    options = {name: value for name, value in chat.template.options.items() if name != "tools"}
    for switch in switches:
        if not _problem(Chat(chat.tokenizer, tools, {**options, **switch}), scaffold, thoughts):
            return "".join(f"++student.chat_options.{name}={str(value).lower()}" for name, value in switch.items())
    return None
