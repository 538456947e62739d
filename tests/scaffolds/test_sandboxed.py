"""Both scaffolds in a real sandbox: what they show, what they refuse, and which errors they tell."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from dagger_exp.protocols import SandboxSpec, Scaffold
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from dagger_exp.sandboxes.limits import Limits
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.scaffolds.session import ScaffoldSession
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.types import Message, StepResult, ToolCall

LIMITS = Limits(memory_mib=512, max_processes=64, cpu_s=20, file_mib=16, disk_mib=32, max_output_bytes=10_000)


def played(scaffold: Scaffold, *messages: Message) -> list[StepResult]:
    """Return what a scaffold answers in a sandbox of its own."""

    async def play() -> list[StepResult]:
        sandboxes = BubblewrapSandboxes(run_id="test", limits=LIMITS, max_live=1, num_ready=0)
        async with sandboxes.connected():
            session = ScaffoldSession(scaffold, await sandboxes.open(SandboxSpec(), "0"))
            return [(await session.step(message))[0] for message in messages]

    if shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    return asyncio.run(play())


def block(command: str) -> Message:
    return Message("assistant", f"```bash\n{command}\n```")


def edit(arguments: str) -> Message:
    return Message("assistant", "", tool_calls=(ToolCall("str_replace_editor", arguments),))


@pytest.mark.bubblewrap
def test_commands_are_told_with_their_ends_and_errors() -> None:
    results = played(
        BashScaffold(timeout_s=2, max_output_chars=60),
        block("echo $((1 + 1)); exit 3"),
        block("if then"),
        block("python3 -c 'x ='"),
        block("python3 -c '{}[1]'"),
        block("nothere"),
        block("python3 -c 'x = bytearray(10 ** 10)'"),
        block("echo begun; sleep 60"),
        block("seq 99999"),
    )
    assert [result.action_error for result in results] == [
        "",
        "syntax",
        "syntax",
        "runtime",
        "runtime",
        "runtime",
        "",
        "",
    ]
    told = [result.observation.content for result in results]
    assert told[0] == "2\n[exit code 3]"
    assert told[6] == "begun\n[ended after 2 s, which is all that a command may take]"
    assert told[7].startswith("1\n2\n3\n")
    assert told[7].endswith("bytes of the middle were not kept]")
    assert "99999\n[exit code 0; " in told[7]


@pytest.mark.bubblewrap
def test_files_are_edited_where_a_command_could_and_nowhere_else() -> None:
    results = played(
        ToolScaffold(),
        edit('{"command": "create", "path": "/work/a/b.py", "file_text": "x = 1\\n"}'),
        edit('{"command": "str_replace", "path": "a/b.py", "old_str": "1", "new_str": "2"}'),
        Message("assistant", "", tool_calls=(ToolCall("execute_bash", '{"command": "cat a/b.py; id -un"}'),)),
        edit('{"command": "undo_edit", "path": "a/b.py"}'),
        edit('{"command": "view", "path": "/work/a/b.py"}'),
        edit('{"command": "undo_edit", "path": "a/b.py"}'),
        edit('{"command": "view", "path": "/work"}'),
        Message(
            "assistant",
            "",
            tool_calls=(ToolCall("execute_bash", '{"command": "ln -s /etc a/c; ln -s /etc/passwd d"}'),),
        ),
        edit('{"command": "view", "path": "d"}'),
        edit('{"command": "create", "path": "a/c/e", "file_text": "x"}'),
        edit('{"command": "create", "path": "a", "file_text": "x"}'),
        edit('{"command": "view", "path": "../etc/passwd"}'),
    )
    told = [result.observation.content for result in results]
    assert told[2] == "x = 2\nagent\n[exit code 0]"
    assert told[4] == "     1\tx = 1"
    assert told[6] == "/work holds:\na"
    assert [result.failed for result in results] == [False] * 8 + [True] * 4
    assert "cannot be read" in told[8]
    assert "cannot be written" in told[9]
    assert "cannot be written" in told[10]
    assert "is not below /work" in told[11]
