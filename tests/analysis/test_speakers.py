"""Messages that a store holds as one text, taken apart by their tokens: what was imported is exported again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.analysis.export import exported_rows
from dagger_exp.analysis.speakers import Speakers
from dagger_exp.chat.conversation import Chat
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.policies.mixture import TeacherOnly
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.rollout.demonstrations.importing import Demonstrations
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.runner import Runner
from dagger_exp.store.store import Store
from dagger_exp.training.tokenizers import byte_tokenizer

CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|system|>\nHelp the user.<|end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|' + ('user' if m.role == 'tool' else m.role) + '|>\n' }}"
    "{% if m.role == 'tool' %}{{ '<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% elif m.role == 'system' %}{{ m.content + '\n\n# Tools\nuser or tool, system' }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
TALKS = [
    [("system", "You\nrepair."), ("user", "f1\n\nfails."), ("assistant", "a"), ("tool", "x\ny"), ("assistant", "b")],
    [("user", "go"), ("assistant", "a"), ("tool", "user"), ("assistant", "b"), ("user", "\nz\n"), ("assistant", "c")],
    [("system", "s"), ("user", "q"), ("user", "r"), ("assistant", "a"), ("tool", ""), ("assistant", "b")],
]


def exported(folder: Path, talks: list[list[tuple[str, str]]], speakers: Any) -> list[list[tuple[str, str]]]:
    """Return talks that were imported into a store and exported from it."""
    tokenizer: Any = byte_tokenizer()
    tokenizer.chat_template = CHATML
    chat = Chat(tokenizer)
    path = folder / "talks.jsonl"
    rows = [{"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    student = LanguagePolicy(engine=ScriptedEngine(end_id=chat.end_id), chat=chat, max_new_tokens=8)
    parts: dict[str, Any] = {"mixing": TeacherOnly(), "labeler": Labeler(), "max_context_tokens": 4096}
    runner = Runner(world=RepoRepair(), student=student, teacher=ScriptedPolicy(), chat=chat, **parts)
    store = Store(folder / "rounds", "run")
    Demonstrations(format="messages", files=str(path)).collect(runner, store, 0, lambda episode: None)
    speakers = speakers or Speakers(tokenizer.decode)
    found = list(exported_rows(Store.open(folder / "rounds"), [0], "executed", speakers))
    return [[(message["role"], message["content"]) for message in row["messages"]] for row in found]


@pytest.mark.parametrize("talk", TALKS)
def test_an_observation_is_taken_apart_into_the_messages_that_it_was(
    talk: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert exported(tmp_path, [talk], None) == [talk]


def test_without_a_tokenizer_it_is_one_message_of_the_user(tmp_path: Path) -> None:
    speakers = Speakers(None)
    opening = ("user", "You\nrepair.\nf1\n\nfails.")
    [talk] = exported(tmp_path, TALKS[:1], speakers)
    assert talk == [opening, ("assistant", "a"), ("user", "x\ny"), ("assistant", "b")]
    assert speakers.num_unknown == 2


def test_a_text_that_the_prompt_does_not_hold_stays_whole(tmp_path: Path) -> None:
    talk = [("system", "s"), ("user", "a spelled <|end|> is broken up"), ("assistant", "a")]
    assert exported(tmp_path, [talk], None) == [[("user", "s\na spelled <|end|> is broken up"), talk[-1]]]
