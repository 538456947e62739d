"""A turn is one tool call: a shell, an editor of files, or the end of the task."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dagger_exp.errors import MalformedAction
from dagger_exp.protocols import Sandbox
from dagger_exp.scaffolds.calls import Found, checked, find_call, loaded, malformed, written
from dagger_exp.scaffolds.commands import Commands
from dagger_exp.scaffolds.editor import NEEDS, EditError, Editor
from dagger_exp.scaffolds.observations import cut_middle
from dagger_exp.scaffolds.schemas import EXECUTE_BASH, FINISH, STR_REPLACE_EDITOR
from dagger_exp.types import Message, StepResult, ToolCall

INSTRUCTIONS = """You work in the folder /work of a Linux machine, by calling tools: exactly one call a turn, as the \
last thing that you say. You are shown what came of it. Every command is run in a new shell: variables and the current \
folder are forgotten, files stay. When the task is done, call finish."""


class ToolScaffold:
    """Runs the one call of a message: of `execute_bash`, `str_replace_editor`, or `finish`, which ends the task.

    Calls are read from what a served model gives apart from its text, and from text in both formats of Qwen's models.

    Args:
        timeout_s: that a command may take.
        max_output_chars: kept of what a call shows, half from each end.

    Raises:
        ConfigError: a number is out of range.
    """

    tools: Sequence[Mapping[str, Any]] = (EXECUTE_BASH, STR_REPLACE_EDITOR, FINISH)
    instructions = INSTRUCTIONS

    def __init__(self, *, timeout_s: float = 60.0, max_output_chars: int = 16_000) -> None:
        self.commands = Commands(timeout_s=timeout_s, max_output_chars=max_output_chars, role="tool")
        self.editor = Editor()

    def read(self, message: Message) -> ToolCall:
        """Return the call of a message, its arguments in one spelling; raises `MalformedAction`."""
        call = checked(_found(message), self.tools)
        if call.name == "str_replace_editor":
            arguments = json.loads(call.arguments)
            command = arguments["command"]
            missing = [key for key in NEEDS.get(command, ()) if key not in arguments]
            if missing:
                raise MalformedAction(f"The call of {call.name} is wrong: {command} needs {' and '.join(missing)}.")
        return call

    def write(self, call: ToolCall) -> Message:
        """Return the message with a call, which a chat template writes in its own format."""
        return Message("assistant", "", tool_calls=(call,))

    def normalized(self, message: Message) -> Message:
        """Return a message with its call apart from the text before it, so that any chat template can write it.

        One that is malformed is text, its calls too: they were answered as a text is.
        """
        try:
            call = self.read(message)
        except MalformedAction:
            said = [message.content, *map(written, message.tool_calls)]
            return replace(message, content="\n".join(filter(None, said)), tool_calls=())
        before = message.content if message.tool_calls else find_call(message.content).before
        return replace(message, content=before, tool_calls=(call,))

    async def run(self, call: ToolCall, sandbox: Sandbox) -> StepResult:
        """Run a call; raises `SandboxError`."""
        arguments = json.loads(call.arguments)
        if call.name == "execute_bash":
            return await self.commands.run(arguments["command"], sandbox)
        try:
            shown, failed = await self.editor.run(sandbox, **arguments), False
        except EditError as error:
            shown, failed = str(error), True
        text, num_cut = cut_middle(shown, self.commands.max_output_chars)
        return StepResult(Message("tool", text), failed=failed, num_cut_chars=num_cut)

    def is_submit(self, call: ToolCall) -> bool:
        """Return whether the call says that the task is done."""
        return call.name == "finish"


def _found(message: Message) -> Found:
    calls = message.tool_calls
    if len(calls) > 1:
        raise malformed(f"There are {len(calls)} calls, and none was run.")
    return Found(calls[0].name, loaded(calls[0].arguments)) if calls else find_call(message.content)
