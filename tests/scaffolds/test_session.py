"""When an episode gets nowhere: loops, malformed actions, and what is neither."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from dagger_exp.protocols import Scaffold
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.scaffolds.session import ScaffoldSession
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.types import Message, StepResult, StopReason
from tests.scaffolds.conftest import FolderSandbox

FAIL, PASS, SUBMIT = "false", "true", "submit"
EDIT = '{"command": "str_replace", "path": "a", "old_str": "b"}'
EDIT_AGAIN = '{"path": "a", "command": "str_replace",  "old_str": "b"}'


def block(command: str) -> str:
    return f"```bash\n{command}\n```"


def played(
    sandbox: FolderSandbox, texts: Sequence[str], scaffold: Scaffold | None = None
) -> list[tuple[StepResult, bool]]:
    """Return what a session says to each text, until it ends the episode."""

    async def play() -> list[tuple[StepResult, bool]]:
        session, steps = ScaffoldSession(scaffold or BashScaffold(), sandbox, max_malformed=4), []
        for text in texts:
            steps.append(await session.step(Message("assistant", text)))
            if steps[-1][0].stop_reason or steps[-1][1]:
                break
        return steps

    return asyncio.run(play())


def end(steps: list[tuple[StepResult, bool]]) -> tuple[int, StopReason | None]:
    return len(steps), steps[-1][0].stop_reason


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ([FAIL, FAIL, FAIL, PASS], (3, StopReason.LOOP)),
        ([FAIL, FAIL, PASS, FAIL, FAIL, PASS], (6, None)),
        ([FAIL, "exit 2", FAIL, "exit 2", FAIL], (5, None)),
        ([FAIL, "echo $((7 / 0))", FAIL, FAIL, FAIL], (5, StopReason.LOOP)),
        ([PASS] * 9, (9, None)),
    ],
)
def test_three_identical_failing_actions_in_a_row_are_a_loop(
    commands: list[str], expected: tuple[int, StopReason | None], sandbox: FolderSandbox
) -> None:
    assert end(played(sandbox, [block(command) for command in commands])) == expected


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a", "b", "c", "d", "e"], (4, StopReason.INVALID_ACTIONS)),
        (["a", "b", "c", block(PASS), "d", "e", "f", block(FAIL)], (8, None)),
        (["a", "a", "a"], (3, StopReason.LOOP)),
        (["b", "a", "a", "a"], (4, StopReason.INVALID_ACTIONS)),
    ],
)
def test_malformed_actions_in_a_row_end_an_episode(
    texts: list[str], expected: tuple[int, StopReason | None], sandbox: FolderSandbox
) -> None:
    assert end(played(sandbox, texts)) == expected


def test_a_malformed_action_is_answered_and_not_valid(sandbox: FolderSandbox) -> None:
    [(result, is_submitted)] = played(sandbox, ["ls"])
    assert not result.valid
    assert not is_submitted
    assert result.observation.role == "user"
    assert "There is no block of bash" in result.observation.content


def test_the_same_call_in_other_words_is_the_same(sandbox: FolderSandbox) -> None:
    tags = (
        "<function=str_replace_editor>\n<parameter=command>\nstr_replace\n</parameter>\n"
        "<parameter=path>\na\n</parameter>\n<parameter=old_str>\nb\n</parameter>\n</function>"
    )
    texts = [
        f'<tool_call>\n{{"name": "str_replace_editor", "arguments": {EDIT}}}\n</tool_call>',
        f"<tool_call>\n{tags}\n</tool_call>",
        f'Again.\n<tool_call>\n{{"arguments": {EDIT_AGAIN}, "name": "str_replace_editor"}}\n</tool_call>',
    ]
    assert end(played(sandbox, texts, ToolScaffold())) == (3, StopReason.LOOP)


def test_a_submission_runs_nothing_and_is_told_to_the_env(sandbox: FolderSandbox) -> None:
    steps = played(sandbox, [block("echo x > a"), block(SUBMIT), block("rm a")])
    assert [is_submitted for _, is_submitted in steps] == [False, True]
    assert steps[-1][0].stop_reason is None
    assert (sandbox.folder / "a").exists()
