"""Actions of other harnesses, written as the calls of a scaffold: what it could not read would be trained on in vain.

Every harness has a shell, most have the editor of SWE-agent, and all have a way to end the task; their names differ.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dagger_exp.errors import MalformedAction
from dagger_exp.protocols import Scaffold
from dagger_exp.rollout.demonstrations.formats import Demonstration
from dagger_exp.rollout.demonstrations.messages import Unreadable, with_text_calls
from dagger_exp.types import Message, ToolCall

NAMES: Mapping[str, str] = {
    "bash": "execute_bash",  # SWE-agent, mini-swe-agent
    "terminal": "execute_bash",  # OpenHands 1.x
    "execute_bash": "execute_bash",  # OpenHands 0.x
    "file_editor": "str_replace_editor",  # OpenHands 1.x
    "str_replace_editor": "str_replace_editor",
    "submit": "finish",  # SWE-agent
    "finish": "finish",
}
"""Tools of other harnesses, and the tool of ours that does the same."""
WITHOUT_EFFECT = ("think", "task_tracker")
"""Tools that change nothing but the conversation: their turns are left out."""
NOTES = ("message", "security_risk", "summary", "timeout", "is_input", "reset")
"""Arguments that say nothing about what is done, at their usual values."""
FENCE = re.compile(r"^```(?:mswea_bash_command|bash|sh)?[ \t]*\n(.*?)\n?^```[ \t]*$", re.DOTALL | re.MULTILINE)
"""A shell command as plain text: mini-swe-agent, and SWE-agent without tools."""
SUBMISSION = re.compile(r"COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT|MINI_SWE_AGENT_FINAL_OUTPUT|^\s*submit\s*$")
"""A shell command that ends the task."""


def with_readable_actions(
    found: Demonstration, scaffold: Scaffold, tools: Sequence[Mapping[str, Any]], counts: Counter[str]
) -> Demonstration:
    """Return a demonstration whose every action the scaffold reads, up to the one that ends the task.

    The system message of another harness describes other tools, so the scaffold's instructions take its place.

    Args:
        found: the demonstration.
        scaffold: of the run.
        tools: that the student's chat template shows, whose schemas give the types of calls in text.
        counts: counts the actions that are kept, mapped and left out.

    Raises:
        Unreadable: an action has no counterpart.
    """
    actions, observations, own = list[Message](), list[Message](), Counter[str]()
    for index, action in enumerate(found.actions):
        if {call.name for call in action.tool_calls} & {*WITHOUT_EFFECT}:
            own[f"{action.tool_calls[0].name} left out"] += 1
            continue
        call, how = _call(with_text_calls(action, tools), scaffold)
        own[how] += 1
        actions.append(_written(action, call, scaffold) if call else scaffold.normalized(action))
        if scaffold.is_submit(scaffold.read(actions[-1])):
            break
        observations += found.observations[index : index + 1]
    if not actions:
        raise Unreadable("it holds no action of a tool that changes something")
    counts += own
    found = replace(found, actions=tuple(actions), observations=tuple(observations[: len(actions) - 1]))
    return _at_home(found, scaffold) if own.keys() - {"kept"} else found


def _at_home(found: Demonstration, scaffold: Scaffold) -> Demonstration:
    """Return a foreign demonstration with the scaffold's instructions, and its observations in the scaffold's role."""
    rest = [message for message in found.opening if message.role != "system"]
    role = "tool" if scaffold.tools else "user"
    return replace(
        found,
        opening=(Message("system", scaffold.instructions), *rest),
        observations=tuple(replace(message, role=role) for message in found.observations),
    )


def _call(action: Message, scaffold: Scaffold) -> tuple[ToolCall | None, str]:
    """Return the counterpart of an action, None where the scaffold reads it as it is, and what was done."""
    fences = [] if action.tool_calls else FENCE.findall(action.content)
    try:
        if not (len(fences) == 1 and SUBMISSION.search(fences[0])) and scaffold.read(action):
            return None, "kept"
    except MalformedAction:
        pass
    if len(fences) == 1:
        return _shell(fences[0]), "text mapped"
    if len(action.tool_calls) != 1:
        calls = f"calls {len(action.tool_calls)} tools" if action.tool_calls else "calls no tool"
        raise Unreadable(f"an action {calls} at once" if action.tool_calls else f"an action {calls}")
    [call] = action.tool_calls
    if call.name not in NAMES:
        raise Unreadable(f"an action calls {call.name!r}, which no tool of the scaffold stands for")
    return _mapped(call), f"{call.name} mapped"


def _mapped(call: ToolCall) -> ToolCall:
    try:
        arguments = dict(json.loads(call.arguments))
    except (ValueError, TypeError, RecursionError) as error:
        raise Unreadable(f"the arguments of a call of {call.name!r} are no JSON object") from error
    if any(str(arguments.get(name)).lower() == "true" for name in ("is_input", "reset")):
        raise Unreadable("an action types into a running program")
    arguments = {name: value for name, value in arguments.items() if name not in NOTES and value is not None}
    name = NAMES[call.name]
    if name == "execute_bash":
        return _shell(str(arguments.get("command", "")))
    return ToolCall(name, json.dumps({} if name == "finish" else arguments, ensure_ascii=False))


def _shell(command: str) -> ToolCall:
    if SUBMISSION.search(command):
        return ToolCall("finish", "{}")
    return ToolCall("execute_bash", json.dumps({"command": command}, ensure_ascii=False))


def _written(action: Message, call: ToolCall, scaffold: Scaffold) -> Message:
    """Return an action with another call in place of its own, after the same words."""
    before = action.content if action.tool_calls else FENCE.sub("", action.content).strip()
    try:
        message = scaffold.write(call)
        scaffold.read(message)
    except MalformedAction as error:
        raise Unreadable(f"the scaffold reads no call of {call.name!r}: {error}".partition("\n")[0]) from error
    content = "\n\n".join(filter(None, (before.strip(), message.content)))
    return replace(message, content=content, reasoning=action.reasoning)
