"""The chat template of students that are trained from scratch: tools are shown, and nothing else has changed."""

from __future__ import annotations

from typing import Any

import pytest

from dagger_exp.chat.conversation import Chat
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.training.tokenizers import SPECIAL, byte_tokenizer, word_tokenizer
from dagger_exp.types import Message, ToolCall

BYTES: Any = byte_tokenizer()
SYSTEM, GO = Message("system", "Repair."), Message("user", "go")
LS = ToolCall("execute_bash", '{"command": "é\\n<b>"}')
WRITTEN = '<tool_call>\n{"name": "execute_bash", "arguments": {"command": "é\\n<b>"}}\n</tool_call>'
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "ls"}}
SHOWN = '<tools>\n{"type": "function", "function": {"name": "ls"}}\n</tools>'


def rendered(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> str:
    chat = Chat(BYTES, tools or [])
    return chat.tokenizer.decode(chat.open(messages).prompt_ids)


def test_without_tools_a_message_is_its_role_its_text_and_an_end() -> None:
    messages = [SYSTEM, GO, Message("assistant", "open"), Message("user", "ok\n")]
    assert rendered(messages) == (
        "<|system|>Repair.<|end|><|user|>go<|end|><|assistant|>open<|end|><|user|>ok\n<|end|><|assistant|>"
    )
    words: Any = word_tokenizer(["go"])
    chat = Chat(words)
    assert chat.open([GO]).prompt_ids == [SPECIAL.index("<|user|>"), len(SPECIAL), 2, SPECIAL.index("<|assistant|>")]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([GO], f"<|system|>{SHOWN}<|end|><|user|>go<|end|><|assistant|>"),
        ([SYSTEM, GO], f"<|system|>Repair.\n{SHOWN}<|end|><|user|>go<|end|><|assistant|>"),
        (
            [GO, Message("assistant", "", tool_calls=(LS,)), Message("tool", "a.py")],
            f"<|system|>{SHOWN}<|end|><|user|>go<|end|><|assistant|>{WRITTEN}<|end|><|user|>a.py<|end|><|assistant|>",
        ),
        (
            [GO, Message("assistant", "Look.", tool_calls=(LS, LS))],
            f"<|system|>{SHOWN}<|end|><|user|>go<|end|><|assistant|>Look.\n{WRITTEN}\n{WRITTEN}<|end|><|assistant|>",
        ),
    ],
)
def test_tools_are_shown_once_and_calls_are_written(messages: list[Message], expected: str) -> None:
    assert rendered(messages, [TOOL]) == expected


def test_the_tools_of_the_scaffold_fit_a_student_of_bytes() -> None:
    chat = Chat(BYTES, ToolScaffold().tools)
    assert len(chat.open([Message("system", ToolScaffold().instructions), GO]).prompt_ids) < 2400
