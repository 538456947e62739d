"""One block of bash a turn: what is read, what is refused and with which words."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagger_exp.errors import MalformedAction
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.types import Message, StepResult, ToolCall
from tests.scaffolds.conftest import FolderSandbox, num_left_out

SCAFFOLD = BashScaffold(timeout_s=20, max_output_chars=40)


def says(text: str) -> Message:
    return Message("assistant", text)


def call(command: str) -> ToolCall:
    return ToolCall("bash", json.dumps({"command": command}, ensure_ascii=False))


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("```bash\nls\n```", "ls"),
        ("I look.\n\n```bash\nls -a\npwd\n```\nThen we see.", "ls -a\npwd"),
        ("As in\n```python\nx = 1\n```\nI write:\n```bash\nls\n```", "ls"),
        ("````bash\ncat > a.md <<'E'\n```bash\nls\n```\nE\n````", "cat > a.md <<'E'\n```bash\nls\n```\nE"),
        ("<think>\n```bash\nrm a\n```\n</think>\n```bash\nls\n```", "ls"),
        ("I could\n```bash\nrm a\n```\n</think>\n```bash\nls\n```", "ls"),
        ("```bash\ngrep '</think>' a\n```", "grep '</think>' a"),
        ("I could.\n</think>\n```bash\ncat > a <<E\n</think>\nE\n```", "cat > a <<E\n</think>\nE"),
    ],
)
def test_the_block_is_the_command(text: str, command: str) -> None:
    assert SCAFFOLD.read(says(text)) == call(command)


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (says("ls"), "There is no block of bash"),
        (says("```python\nprint()\n```"), "There is no block of bash"),
        (says("```bash\nls"), "The block is not closed"),
        (says("<think>\n```bash\nls\n```"), "There is no block of bash"),
        (says("```bash\nls\n```\n```bash\npwd\n```"), "There are 2 blocks, and none was run"),
        (says("```bash\n \n```"), "The block is empty"),
        (Message("assistant", "", tool_calls=(ToolCall("bash", "{}"),)), "There are no tools here"),
    ],
)
def test_what_is_malformed_is_told_with_the_right_form(message: Message, problem: str) -> None:
    with pytest.raises(MalformedAction, match=f"(?s)^{problem}.*exactly one block.*```bash\nls\n```$") as caught:
        SCAFFOLD.read(message)
    assert SCAFFOLD.read(says(str(caught.value))) == call("ls")


def test_long_odd_text_is_read_in_one_pass() -> None:
    """Each fence is looked at once; to look from each for its end would take longer than a test may."""
    assert SCAFFOLD.read(says("```a\n" * 100_000 + "````bash\nls\n````")) == call("ls")
    with pytest.raises(MalformedAction, match="The block is not closed"):
        SCAFFOLD.read(says("```bash\n" * 100_000))


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip))
def test_every_command_comes_back(command: str) -> None:
    assert SCAFFOLD.read(SCAFFOLD.write(call(command))) == call(command)


@pytest.mark.parametrize("command", ["```", "a\n````bash\nls\n````", "submit\n\n"])
def test_a_command_with_fences_or_line_breaks_comes_back(command: str) -> None:
    assert SCAFFOLD.read(SCAFFOLD.write(call(command))) == call(command)


@pytest.mark.parametrize(("command", "expected"), [("submit", True), (" submit\n", True), ("echo submit", False)])
def test_the_word_submit_ends_the_task(command: str, expected: bool) -> None:
    assert SCAFFOLD.is_submit(SCAFFOLD.read(says(f"```bash\n{command}\n```"))) is expected


@pytest.mark.parametrize(
    ("command", "told", "error", "failed"),
    [
        ("echo hi", "hi\n[exit code 0]", "", False),
        ("true", "[exit code 0]", "", False),
        ("echo out; echo err >&2; exit 3", "out\nerr\n[exit code 3]", "", True),
        ("cat a/b", "cat: a/b: No such file or directory\n[exit code 1]", "", True),
        ("for i in 1 2 3 4 5 6; do echo line $i; done; seq 999", "line 1\nline 2\nline 3", "", False),
        ("if then", "[exit code 2]", "syntax", True),
        ("nothere", "[exit code 127]", "runtime", True),
        ("/", "[exit code 126]", "runtime", True),
        ("kill -9 $$", "[exit code 137]", "runtime", True),
    ],
)
def test_a_command_is_told_with_its_end(
    command: str, told: str, error: str, failed: bool, sandbox: FolderSandbox
) -> None:
    result = asyncio.run(SCAFFOLD.run(call(command), sandbox))
    assert told in result.observation.content
    assert len(result.observation.content) < 100
    num_cut = num_left_out(result.observation)
    assert result == StepResult(result.observation, action_error=error, failed=failed, num_cut_chars=num_cut)
    assert result.observation.role == "user"


def test_a_command_that_takes_too_long_is_an_observation(tmp_path: Path) -> None:
    scaffold = BashScaffold(timeout_s=0.3)
    result = asyncio.run(scaffold.run(call("echo begun; exec sleep 60"), FolderSandbox(tmp_path)))
    assert result.observation.content == "begun\n[ended after 0.3 s, which is all that a command may take]"
    assert result == StepResult(result.observation, failed=True)


def test_a_block_begun_in_a_thought_that_the_template_began_is_not_run() -> None:
    thought = "I could\n```bash\nrm -rf a\n</think>\n\n"
    assert json.loads(SCAFFOLD.read(Message("assistant", f"{thought}```bash\nls\n```")).arguments)["command"] == "ls"
    with pytest.raises(MalformedAction):
        SCAFFOLD.read(Message("assistant", "```bash\nls\n```\n</think>\n\nDone."))


def test_a_block_with_the_line_ends_of_windows_is_a_script_of_unix() -> None:
    text = "I look.\r\n\r\n```bash\r\nls\r\npwd\r\n```\r\n"
    assert BashScaffold().read(says(text)) == call("ls\npwd")
