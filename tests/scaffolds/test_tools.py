"""One tool call a turn: read from what a served model gives and from text, refused with words that help."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagger_exp.errors import MalformedAction
from dagger_exp.scaffolds.calls import JSON_FORM, written
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.types import Message, StepResult, ToolCall
from tests.scaffolds.conftest import FolderSandbox, num_left_out

SCAFFOLD = ToolScaffold(timeout_s=20, max_output_chars=200)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))


def bash(command: str) -> ToolCall:
    return call("execute_bash", command=command)


def says(text: str, *calls: ToolCall) -> Message:
    return Message("assistant", text, tool_calls=calls)


def tagged(name: str, **arguments: str) -> str:
    """Return a call as Qwen3-Coder writes it."""
    parameters = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in arguments.items())
    return f"<tool_call>\n<function={name}>\n{parameters}</function>\n</tool_call>"


CALL = "<tool_call>\n<function=execute_bash>\n{}</function>\n</tool_call>"
LS = bash("ls")
VIEW = call("str_replace_editor", command="view", path="/work/a.py", view_range=[1, -1])
INSERT = call("str_replace_editor", command="insert", path="a.py", new_str="x = [1]\n", insert_line=3)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (says("", LS), LS),
        (says("I look.", ToolCall("execute_bash", '{ "command":"ls" }')), LS),
        (says("I look.\n" + written(LS)), LS),
        (says("<tool_call>" + written(LS).removeprefix("<tool_call>\n")), LS),
        (says("<think>\n" + written(VIEW) + "\n</think>\n\n" + written(LS)), LS),
        (says(written(VIEW) + "\n</think>\n\n" + written(LS)), LS),
        (says(written(bash("echo '</tool_call>'"))), bash("echo '</tool_call>'")),
        (says("I look.\n" + written(bash("grep '</think>' a"))), bash("grep '</think>' a")),
        (says("hm\n</think>\n" + tagged("execute_bash", command="echo '</think>'")), bash("echo '</think>'")),
        (says("I look.\n\n" + tagged("execute_bash", command="ls")), LS),
        (says(tagged("execute_bash", command="a\n</parameter>\nb")), bash("a\n</parameter>\nb")),
        (says(tagged("str_replace_editor", command="view", path="/work/a.py", view_range="[1, -1]")), VIEW),
        (
            says(tagged("str_replace_editor", command="insert", path="a.py", insert_line="3", new_str="x = [1]\n")),
            INSERT,
        ),
        (says(tagged("finish")), call("finish")),
        (says("", call("str_replace_editor", command="view", path="a", view_range=None)), None),
    ],
)
def test_a_call_is_read_in_every_format(message: Message, expected: ToolCall | None) -> None:
    assert SCAFFOLD.read(message) == (expected or call("str_replace_editor", command="view", path="a"))


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (says("I am done."), "There is no tool call. Call exactly one tool, in this form"),
        (says("<think>\n" + written(LS)), "There is no tool call"),
        (says("", LS, VIEW), "There are 2 calls, and none was run"),
        (says(written(LS) + "\n" + written(LS)), "There are several calls, and none was run"),
        (says(written(LS) + "\nI see a.py."), "Something follows the call"),
        (
            says('<tool_call>\n{"name": "execute_bash", "arguments": {"command": "ls"}}'),
            "does not end with </tool_call>",
        ),
        (says('<tool_call>\n{"name": "finish", "arguments": {}\n</tool_call>'), r"The call is no JSON \(Expecting"),
        (
            says('<tool_call>\n{"name": "finish", "arguments": ' + "[" * 9999),
            r"The call is no JSON \(maximum recursion",
        ),
        (says("", ToolCall("execute_bash", "[" * 9999)), r"The arguments are no JSON \(maximum recursion"),
        (says(tagged("str_replace_editor", insert_line="[" * 9999)), "'insert_line' must be integer"),
        (says('<tool_call>\n{"command": "ls"}\n</tool_call>'), "must be a JSON object with a name and arguments"),
        (says('<tool_call>\n{"name": ["a"], "arguments": {}}\n</tool_call>'), "must be a JSON object with a name"),
        (says("", ToolCall("execute_bash", "{'command'")), r"The arguments are no JSON \("),
        (says("", ToolCall("execute_bash", "[]")), "arguments of execute_bash must be a JSON object, command"),
        (says("", call("run", command="ls")), "no tool 'run'; the tools are execute_bash, str_replace_editor, finish"),
        (says("", call("execute_bash")), r"'command' is missing. Its arguments: command \(string\)"),
        (says("", call("execute_bash", command=["ls"])), "'command' must be string"),
        (says("", call("execute_bash", cmd="ls")), "it takes no 'cmd', 'command' is missing"),
        (says("", call("finish", answer="42")), "it takes no 'answer'. Its arguments: none"),
        (says("", call("str_replace_editor", command="open", path="a")), "'command' must be one of view, create"),
        (says("", call("str_replace_editor", command="create", path="a")), "create needs file_text"),
        (says("", call("str_replace_editor", command="insert", path="a")), "insert needs insert_line and new_str"),
        (
            says("", call("str_replace_editor", command="insert", path="a", insert_line="1", new_str="")),
            "'insert_line' must be integer",
        ),
        (
            says("", call("str_replace_editor", command="view", path="a", view_range=[1, True])),
            "'view_range' must be array of integer",
        ),
        (says("<tool_call>\n<function=finish>\n"), r"(?s)does not end with </function>.*<parameter=command>\nls\n"),
        (says(tagged("execute_bash", command="ls").replace("</parameter>", "")), "A parameter is not closed"),
        (says(CALL.format("<parameter=a></parameter>" * 2)), "A parameter stands there twice"),
        (says(tagged("str_replace_editor", insert_line="one")), "'path' is missing, 'insert_line' must be integer"),
    ],
)
def test_what_is_malformed_is_told_in_words_that_help(message: Message, problem: str) -> None:
    with pytest.raises(MalformedAction, match=problem):
        SCAFFOLD.read(message)


def test_long_odd_text_is_read_in_one_pass() -> None:
    """Each tag is looked at once; to look from each for its end would take longer than a test may."""
    for odd in ("<parameter=a>" * 50_000, "</parameter> x" * 50_000):
        assert SCAFFOLD.read(says(tagged("execute_bash", command=odd))) == bash(odd)
    with pytest.raises(MalformedAction, match="A parameter is not closed"):
        SCAFFOLD.read(says(CALL.format("<parameter=a>" * 50_000)))
    with pytest.raises(MalformedAction, match="does not end with </function>"):
        SCAFFOLD.read(says("<tool_call>\n<function=finish>" + " " * 500_000))


@pytest.mark.parametrize("text", ["I am done.", "<tool_call>\n<function=finish>\n"])
def test_the_form_that_is_shown_is_one_that_is_read(text: str) -> None:
    with pytest.raises(MalformedAction) as caught:
        SCAFFOLD.read(says(text))
    assert SCAFFOLD.read(says(str(caught.value).partition("\n\n")[2])) == LS


@given(command=TEXTS)
def test_every_command_comes_back_in_every_format(command: str) -> None:
    assert SCAFFOLD.read(SCAFFOLD.write(bash(command))) == bash(command)
    assert SCAFFOLD.read(says(written(bash(command)))) == bash(command)
    if "</parameter>" not in command:
        assert SCAFFOLD.read(says(tagged("execute_bash", command=command))) == bash(command)


def test_every_format_becomes_a_call_and_what_was_said_before_it_stays() -> None:
    for text in (written(LS), tagged("execute_bash", command="ls")):
        assert SCAFFOLD.normalized(says(f"<think>\nhm\n</think>\n\nI look.\n{text}")) == says(
            "<think>\nhm\n</think>\n\nI look.", LS
        )
    assert SCAFFOLD.normalized(says("I look.", ToolCall("execute_bash", '{"command":"ls"}'))) == says("I look.", LS)


def test_what_is_malformed_becomes_text() -> None:
    assert SCAFFOLD.normalized(says("I am done.")) == says("I am done.")
    assert SCAFFOLD.normalized(says("Both.", LS, ToolCall("finish", "{"))) == says(
        f'Both.\n{written(LS)}\n<tool_call>\n{{"name": "finish", "arguments": {{}}\n</tool_call>'
    )


def test_finish_ends_the_task_and_nothing_else_does() -> None:
    assert SCAFFOLD.is_submit(call("finish"))
    assert not SCAFFOLD.is_submit(bash("finish"))


@pytest.mark.parametrize(
    ("action", "told", "error"),
    [
        (bash("echo hi"), "hi\n[exit code 0]", ""),
        (bash("nothere"), "[exit code 127]", "runtime"),
        (bash("seq 999"), "characters left out]", ""),
        (call("str_replace_editor", command="view", path="nothere"), "/work/nothere does not exist", ""),
        (call("str_replace_editor", command="create", path="a", file_text="x"), "/work/a is created.", ""),
    ],
)
def test_a_call_is_answered_by_its_tool(action: ToolCall, told: str, error: str, sandbox: FolderSandbox) -> None:
    result = asyncio.run(SCAFFOLD.run(action, sandbox))
    assert told in result.observation.content
    assert result.observation.role == "tool"
    failed = "nothere" in action.arguments
    num_cut = num_left_out(result.observation)
    assert result == StepResult(result.observation, action_error=error, failed=failed, num_cut_chars=num_cut)
    assert len(result.observation.content) < 300


@pytest.mark.parametrize("thought", ["I must answer with a <tool_call> block.", "<tool_call>\n{}\n</tool_call>"])
def test_a_call_begun_in_a_thought_that_the_template_began_is_not_meant(thought: str) -> None:
    assert SCAFFOLD.read(says(f"{thought}\n</think>\n\n{JSON_FORM}")) == LS
    with pytest.raises(MalformedAction):
        SCAFFOLD.read(says(f"{JSON_FORM}\n</think>\n\nDone."))


@pytest.mark.parametrize(
    "form",
    [
        '<tool_call>\n{"name": "execute_bash", "arguments": {"command": "ls\\npwd"}}\n</tool_call>\n',
        "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\npwd\n</parameter>\n</function>\n</tool_call>",
    ],
)
def test_a_call_with_the_line_ends_of_windows_is_the_same_call(form: str) -> None:
    read = ToolScaffold().read
    assert read(Message("assistant", form.replace("\n", "\r\n"))) == read(Message("assistant", form))
    assert json.loads(read(Message("assistant", form)).arguments) == {"command": "ls\npwd"}
