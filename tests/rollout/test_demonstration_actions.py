"""Actions of other harnesses become calls that the scaffold reads, or their demonstration is set aside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.protocols import Scaffold
from dagger_exp.rollout.demonstrations.importing import Demonstrations, Reading
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.scaffolds.tools import ToolScaffold

Raw = dict[str, Any]
SUBMISSION = "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT && cat diff"
SCAFFOLDS = [BashScaffold(), ToolScaffold()]


def call(name: str, **arguments: Any) -> Raw:
    return {"id": name, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def said(*calls: Raw, content: Any = "Look.", **more: Any) -> Raw:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


def traj(*messages: Raw) -> Raw:
    """Return messages as SWE-agent and mini-swe-agent keep them."""
    opening = [{"role": "system", "content": "Their tools."}, {"role": "user", "content": "fix"}]
    return {"info": {"exit_status": "Submitted"}, "messages": [*opening, *messages]}


def seen(role: str = "tool") -> Raw:
    return {"role": role, "content": "a.py"}


def responses(*items: Raw) -> Raw:
    return {"object": "response", "output": list(items), "extra": {}}


def events(*kinds: Raw) -> Raw:
    """Return a row of OpenHands 1.x."""
    user = {"role": "user", "content": [{"type": "text", "text": "fix"}]}
    opening = [
        {"kind": "SystemPromptEvent", "system_prompt": {"type": "text", "text": "Their tools."}},
        {"kind": "MessageEvent", "llm_message": user, "extended_content": []},
        {"kind": "ConversationStateUpdateEvent", "key": "x", "value": 1},
    ]
    return {"instance_id": "a", "test_result": {"git_patch": "x"}, "history": [*opening, *kinds]}


def action(name: str, response: str, **arguments: Any) -> Raw:
    text = [{"type": "text", "text": "Look."}]
    own = {"id": response, "name": name, "arguments": json.dumps({"security_risk": "LOW", **arguments})}
    return {"kind": "ActionEvent", "id": response, "llm_response_id": response, "thought": text, "tool_call": own}


def observation(name: str) -> Raw:
    inner = {"content": [{"type": "text", "text": "a.py"}], "metadata": {"prefix": "", "suffix": "\n[exit 0]"}}
    return {"kind": "ObservationEvent", "tool_name": name, "observation": inner}


THOUGHT = {"type": "thinking", "thinking": "Hm."}
PLAYED: dict[str, tuple[str, Raw]] = {
    "mini text": (
        "swe_agent",
        traj(
            {"role": "assistant", "content": "Look.\n\n```mswea_bash_command\nls\n```"},
            seen("user"),
            {"role": "assistant", "content": f"Done.\n\n```mswea_bash_command\n{SUBMISSION}\n```"},
            {"role": "exit", "content": "diff"},
        ),
    ),
    "mini tools": ("swe_agent", traj(said(call("bash", command="ls")), seen(), said(call("bash", command=SUBMISSION)))),
    "mini responses": (
        "swe_agent",
        traj(
            responses(
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]},
                {"type": "message", "content": [{"type": "output_text", "text": "Look."}]},
                {"type": "function_call", "name": "bash", "arguments": '{"command": "ls"}', "call_id": "1"},
            ),
            {"type": "function_call_output", "call_id": "1", "output": "a.py"},
            responses({"type": "function_call", "name": "bash", "arguments": json.dumps({"command": SUBMISSION})}),
            {"role": "exit", "content": "diff"},
        ),
    ),
    "swe_agent thinking blocks": (
        "swe_agent",
        traj(said(call("bash", command="ls"), thinking_blocks=[THOUGHT]), seen(), said(call("submit"))),
    ),
    "swe_agent reasoning": (
        "swe_agent",
        traj(said(call("bash", command="ls"), reasoning="Hm."), seen(), said(call("submit"))),
    ),
    "content list": (
        "swe_agent",
        traj(
            said(call("bash", command="ls"), content=[THOUGHT, {"type": "text", "text": "Look."}]),
            seen(),
            said(call("submit")),
        ),
    ),
    "a submission that is asked again": (
        "swe_agent",
        traj(said(call("bash", command="ls")), seen(), said(call("submit")), seen(), said(call("submit"))),
    ),
    "openhands 1": (
        "openhands",
        events(action("terminal", "1", command="ls"), observation("terminal"), action("finish", "2", message="Done.")),
    ),
    "openhands 1 with thoughts": (
        "openhands",
        events(
            action("think", "0", thought="Hm."),
            observation("think"),
            {**action("terminal", "1", command="ls", timeout=3), "reasoning_content": "Hm."},
            observation("terminal"),
            action("finish", "2", message="Done."),
            observation("finish"),
        ),
    ),
}
WITH_THOUGHT = (
    "mini responses",
    "swe_agent thinking blocks",
    "swe_agent reasoning",
    "content list",
    "openhands 1 with thoughts",
)
SET_ASIDE: dict[str, tuple[str, Raw, str]] = {
    "several calls": (
        "swe_agent",
        traj(said(call("bash", command="ls"), call("bash", command="pwd"))),
        "calls 2 tools at once",
    ),
    "one response, two actions": (
        "openhands",
        events(action("terminal", "1", command="ls"), observation("terminal"), action("terminal", "1", command="pwd")),
        "calls 2 tools at once",
    ),
    "another tool": (
        "swe_agent",
        traj(said(call("browser", url="x"))),
        "calls 'browser', which no tool of the scaffold",
    ),
    "no call": ("swe_agent", traj({"role": "assistant", "content": "I think."}), "calls no tool"),
    "typing": (
        "openhands",
        events(action("terminal", "1", command="y", is_input="true")),
        "types into a running program",
    ),
    "no JSON": ("swe_agent", traj(said({"function": {"name": "bash", "arguments": "{"}})), "no JSON object"),
    "condensed": (
        "openhands",
        events({"kind": "Condensation"}, action("terminal", "1", command="ls")),
        "was condensed",
    ),
    "unknown kind": ("openhands", events({"kind": "NewEvent"}, action("terminal", "1", command="ls")), "kind NewEvent"),
    "only thoughts": ("openhands", events(action("think", "1", thought="Hm.")), "no action of a tool"),
}


def read(folder: Path, kind: str, row: Raw, scaffold: Scaffold) -> Reading:
    path = folder / "row.json"
    path.write_text(json.dumps(row))
    return Demonstrations(format=kind, files=str(path), scaffold=scaffold).read()


@pytest.mark.parametrize("scaffold", SCAFFOLDS, ids=["bash", "tools"])
@pytest.mark.parametrize("case", PLAYED)
def test_actions_become_calls_that_the_scaffold_reads(tmp_path: Path, case: str, scaffold: Scaffold) -> None:
    reading = read(tmp_path, *PLAYED[case], scaffold)
    assert not reading.set_aside
    [found] = reading.demonstrations
    first, last = found.actions
    assert json.loads(scaffold.read(first).arguments) == {"command": "ls"}
    assert scaffold.is_submit(scaffold.read(last))
    assert first.content.startswith("Look.")
    assert first.reasoning == ("Hm." if case in WITH_THOUGHT else "")
    assert [message.role for message in found.opening] == ["system", "user"]
    assert found.opening[0].content == scaffold.instructions
    [answer] = found.observations
    assert answer.content.startswith("a.py")
    assert answer.role == ("tool" if scaffold.tools else "user")
    assert reading.actions.total() == 2 + (case == "openhands 1 with thoughts")


@pytest.mark.parametrize("scaffold", SCAFFOLDS, ids=["bash", "tools"])
@pytest.mark.parametrize("case", SET_ASIDE)
def test_what_has_no_counterpart_is_set_aside_with_its_reason(tmp_path: Path, case: str, scaffold: Scaffold) -> None:
    kind, row, reason = SET_ASIDE[case]
    reading = read(tmp_path, kind, row, scaffold)
    assert not reading.demonstrations
    [(said, count)] = reading.set_aside.items()
    assert reason in said
    assert count == 1
    assert not reading.actions, "of what is set aside nothing is counted"


def test_a_shell_has_no_editor_and_tools_have_one(tmp_path: Path) -> None:
    edit = said(call("file_editor", command="create", path="/work/a", file_text="x", security_risk="LOW"))
    row = traj(edit, seen(), said(call("finish", message="Done.")))
    [found] = read(tmp_path, "swe_agent", row, ToolScaffold()).demonstrations
    assert found.actions[0].tool_calls[0].name == "str_replace_editor"
    assert "There is no tool 'str_replace_editor'" in str(read(tmp_path, "swe_agent", row, BashScaffold()))


def test_actions_that_the_scaffold_reads_already_are_kept_with_their_opening(tmp_path: Path) -> None:
    scaffold = ToolScaffold()
    row = traj(said(call("execute_bash", command="ls")), seen(), said(call("finish")))
    reading = read(tmp_path, "swe_agent", row, scaffold)
    [found] = reading.demonstrations
    assert found.opening[0].content == "Their tools."
    assert dict(reading.actions) == {"kept": 2}
