"""A turn is one fenced block of bash, as plain text: any model can write it, and no chat template has to know it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dagger_exp.errors import MalformedAction
from dagger_exp.protocols import Sandbox
from dagger_exp.scaffolds.calls import THOUGHT_END, after_thought
from dagger_exp.scaffolds.commands import Commands
from dagger_exp.types import Message, StepResult, ToolCall

SUBMIT = "submit"
FENCE = re.compile(r"^(`{3,})([^\n`]*)$", re.MULTILINE)
BLANK = " \t\r"
"""May follow a fence; a line that ends with the last of them has the line end of Windows, which no shell reads."""
FORM = "Answer with exactly one block of this form:\n\n```bash\nls\n```"
INSTRUCTIONS = f"""You work in a Linux shell, in the folder /work. {FORM}

It is run as a script, and you are shown its output and its exit code. Every block is run in a new shell: variables \
and the current folder are forgotten, files stay. When the task is done, submit it:

```bash
{SUBMIT}
```"""


class BashScaffold:
    """Runs the one block of bash of a message; a block that is the word `submit` says that the task is done.

    Args:
        timeout_s: that a command may take.
        max_output_chars: kept of a command's output, half from each end.

    Raises:
        ConfigError: a number is out of range.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    instructions = INSTRUCTIONS

    def __init__(self, *, timeout_s: float = 60.0, max_output_chars: int = 16_000) -> None:
        self.commands = Commands(timeout_s=timeout_s, max_output_chars=max_output_chars, role="user")

    def read(self, message: Message) -> ToolCall:
        """Return the block of a message; raises `MalformedAction` where it has none, several, or an empty one."""
        blocks, is_open = _blocks(after_thought(message.content))
        whole, _ = ([], False) if len(blocks) == 1 and not is_open else _blocks(message.content)
        if len(whole) == 1 and THOUGHT_END in whole[0]:  # the command holds what looks like the end of a thought
            blocks = whole
        if message.tool_calls:
            raise MalformedAction(f"There are no tools here. {FORM}")
        if len(blocks) > 1:
            raise MalformedAction(f"There are {len(blocks)} blocks, and none was run. {FORM}")
        if not blocks:
            raise MalformedAction(f"{'The block is not closed' if is_open else 'There is no block of bash'}. {FORM}")
        if not blocks[0].strip():
            raise MalformedAction(f"The block is empty. {FORM}")
        return ToolCall("bash", json.dumps({"command": blocks[0].removesuffix("\n")}, ensure_ascii=False))

    def write(self, call: ToolCall) -> Message:
        """Return the message with the block of a call, fenced by more backticks where the command has some itself.

        Raises:
            MalformedAction: the call is of another tool than a shell or the end of the task.
        """
        if call.name not in ("bash", "execute_bash", "finish"):
            raise MalformedAction(f"There is no tool {call.name!r} in a shell. {FORM}")
        command = SUBMIT if call.name == "finish" else _command(call)
        longest = max(map(len, re.findall(r"`{3,}", command)), default=2)
        fence = "`" * (longest + 1)
        return Message("assistant", f"{fence}bash\n{command}\n{fence}")

    def normalized(self, message: Message) -> Message:
        """Return the message as it is: every model writes a block in the same way."""
        return message

    async def run(self, call: ToolCall, sandbox: Sandbox) -> StepResult:
        """Run a block; raises `SandboxError`."""
        return await self.commands.run(_command(call), sandbox)

    def is_submit(self, call: ToolCall) -> bool:
        """Return whether the block is the word `submit`."""
        return _command(call).strip() == SUBMIT


def _blocks(text: str) -> tuple[list[str], bool]:
    """Return the blocks of bash of a text, and whether it has one that is not closed."""
    fences = list(FENCE.finditer(text))
    last = {fence[1]: fence.start() for fence in fences if not fence[2].strip(BLANK)}  # that can close, by its length
    blocks, is_open = [], False
    opening: re.Match[str] | None = None
    for fence in fences:
        if opening is None:
            is_closed = last.get(fence[1], -1) > fence.start()
            opening = fence if is_closed else None
            is_open |= not is_closed and fence[2].strip() == "bash"
        elif fence[1] == opening[1] and not fence[2].strip(BLANK):
            block = text[opening.end() + 1 : fence.start()]
            block = block.replace("\r\n", "\n") if opening[2].endswith("\r") else block
            blocks += [block] if opening[2].strip() == "bash" else []
            opening = None
    return blocks, is_open


def _command(call: ToolCall) -> str:
    return json.loads(call.arguments)["command"]
