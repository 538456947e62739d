"""Episodes of a scaffold, whole: student and teacher in turns, on real files, and what is trained of them."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagger_exp.chat.conversation import Chat
from dagger_exp.data.prefix_tree import grow
from dagger_exp.data.selection import EpisodeFilter, label_rows
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.evaluation.metrics import evaluation_metrics
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.policies.mixture import StudentOnly
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.protocols import Generation, Sampling, Scaffold
from dagger_exp.rollout.collector import Collector
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.metrics import rollout_metrics
from dagger_exp.rollout.plan import ShuffledTasks
from dagger_exp.rollout.runner import Runner
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.scaffolds.session import ScaffoldSession
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.store.store import Store
from dagger_exp.training.tokenizers import byte_tokenizer
from dagger_exp.types import Actor, Choice, Episode, Key, Message, StepResult, StopReason, Task, ToolCall
from tests.scaffolds.conftest import FolderSandbox

BYTES: Any = byte_tokenizer()
BROKEN, MENDED = "print('é'\n", "print('é')\n"
CALLS = (
    ToolCall("execute_bash", '{"command": "cat a.py"}'),
    ToolCall("execute_bash", '{"command": "python a.py"}'),
    ToolCall(
        "str_replace_editor", '{"command": "str_replace", "path": "a.py", "old_str": "\'\\n", "new_str": "\')\\n"}'
    ),
    ToolCall("execute_bash", '{"command": "python a.py"}'),
    ToolCall("finish", "{}"),
)
"""What the teacher does, turn by turn."""


@dataclass
class Mending:
    """An env of the test: a file that is to be mended, in a sandbox; its teacher knows how."""

    scaffold: Scaffold
    calls: Sequence[ToolCall]
    num_steps: int = 0

    async def reset(self) -> list[Message]:
        self.folder = tempfile.TemporaryDirectory()
        self.sandbox = FolderSandbox(Path(self.folder.name))
        await self.sandbox.write_files({"/work/a.py": BROKEN.encode()})
        self.session = ScaffoldSession(self.scaffold, self.sandbox, max_malformed=3)
        return [Message("system", self.scaffold.instructions), Message("user", "Mend a.py.")]

    async def step(self, action: Message) -> StepResult:
        self.num_steps += 1
        result, is_submitted = await self.session.step(action)
        if not is_submitted:
            return result
        solved = await self.sandbox.read_file("/work/a.py") == MENDED.encode()
        stop_reason = StopReason.SOLVED if solved else StopReason.UNSOLVED
        return StepResult(result.observation, float(solved), stop_reason)

    def expert_action(self) -> Message:
        return self.scaffold.write(self.calls[self.num_steps])

    def random_action(self, key: Key) -> Message:
        return self.expert_action()

    async def close(self) -> None:
        self.folder.cleanup()


@dataclass(frozen=True)
class MendingWorld:
    """Its tasks are numbers: of the script that the student follows."""

    scaffold: Scaffold
    calls: Sequence[ToolCall] = CALLS
    max_turns: int = 6
    num_tasks: int = 1

    def tasks(self, split: str) -> list[Task]:
        return [Task(str(index), split, {}) for index in range(self.num_tasks)]

    def make(self, task: Task) -> Mending:
        return Mending(self.scaffold, self.calls)

    def vocabulary(self) -> list[str]:
        return []

    def connected(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()


class Reciting(ScriptedEngine):
    """The student: says what is written down for a task and a turn, the last of it again and again."""

    def __init__(self, chat: Chat, *scripts: Sequence[str]) -> None:
        super().__init__(end_id=chat.end_id)
        self.chat, self.scripts = chat, scripts

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        assert sampling.key is not None
        script = self.scripts[int(sampling.key.task_id)]
        said = script[min(sampling.key.turn_index, len(script) - 1)]
        ids = [*self.chat.tokenizer.encode(said, add_special_tokens=False), self.chat.end_id]
        return Generation(ids, [0.0] * len(ids), "stop", 0)


@dataclass(frozen=True)
class InTurns(StudentOnly):
    """Student, teacher, student, teacher, student."""

    def choose(self, key: Key) -> Choice:
        return Choice(Actor.TEACHER if key.turn_index % 2 else Actor.STUDENT)


def as_json(call: ToolCall) -> str:
    return f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n</tool_call>'


def runner(world: Any, chat: Chat, engine: Reciting, mixing: Any) -> Runner:
    return Runner(
        world=world,
        student=LanguagePolicy(engine=engine, chat=chat, max_new_tokens=500),
        teacher=ScriptedPolicy(),
        mixing=mixing,
        labeler=Labeler(),
        chat=chat,
        max_context_tokens=20_000,
    )


@pytest.fixture(scope="module")
def mended() -> tuple[Chat, Episode]:
    """Give an episode of five turns: the student says other things than the teacher would at the turns 0 and 4."""
    world = MendingWorld(ToolScaffold())
    chat = Chat(BYTES, world.scaffold.tools)
    other = as_json(ToolCall("execute_bash", '{"command": "ls"}'))
    engine = Reciting(chat, ["I look.\n" + other, "", as_json(CALLS[2]), "", "I end.\n" + as_json(CALLS[4])])
    episode = asyncio.run(runner(world, chat, engine, InTurns()).run(world.tasks("train")[0], Key(0, 0, "0", 0)))
    assert not episode.error
    return chat, episode


def test_a_student_of_bytes_and_its_teacher_mend_a_file_with_tools(mended: tuple[Chat, Episode]) -> None:
    _, episode = mended
    assert episode.stop_reason is StopReason.SOLVED
    assert [turn.actor for turn in episode.turns] == [Actor.STUDENT, Actor.TEACHER] * 2 + [Actor.STUDENT]
    assert [turn.action_error for turn in episode.turns] == ["", "syntax", "", "", ""]
    assert episode.turns[1].observation == "a.py\n[exit code 0]"
    assert episode.turns[4].observation == "é\n[exit code 0]"
    assert all(turn.valid for turn in episode.turns)


def test_each_prompt_extends_the_one_before(mended: tuple[Chat, Episode]) -> None:
    chat, episode = mended
    assert [turn.starts_branch for turn in episode.turns] == [True, False, False, False, False]
    for turn, after in zip(episode.turns, episode.turns[1:], strict=False):
        prefix = [*episode.prompt_ids(turn.turn_index), *turn.response_ids]
        assert episode.prompt_ids(after.turn_index) == [*prefix, *after.context_ids]
        assert chat.tokenizer.decode(after.context_ids) == f"<|user|>{after.observation}<|end|><|assistant|>"


def test_a_label_is_the_teachers_call_in_the_students_format(mended: tuple[Chat, Episode]) -> None:
    chat, episode = mended
    for turn, call in zip(episode.turns, CALLS, strict=True):
        label = chat.parse(turn.label_ids or [])
        assert label.content == turn.label_text == as_json(call)
        read = ToolScaffold().read(label)
        assert (read.name, json.loads(read.arguments)) == (call.name, json.loads(call.arguments))


def test_exactly_the_labels_are_trained(mended: tuple[Chat, Episode]) -> None:
    chat, episode = mended
    trees = grow(label_rows(episode, "token"), max_tokens=20_000)
    trained = [int(i) for tree in trees for i in tree.input_ids[np.asarray(tree.ce_weight) > 0]]
    labels = [i for turn in episode.turns for i in turn.label_ids or []]
    assert sorted(trained) == sorted(labels)
    assert trained.count(chat.end_id) == len(CALLS)


def block(command: str) -> str:
    return f"```bash\n{command}\n```"


SCRIPTS = {
    "solved": [block("echo \"print('é')\" > a.py"), block("submit")],
    "given up": [block("python a.py"), block("python -c \"{}['a']\""), block("submit")],
    "a loop": [block("python a.py")],
    "no blocks": ["python a.py", "ls", "cat a.py"],
    "wanders": [block("ls")],
}


def test_the_failure_table_of_a_round(tmp_path: Path) -> None:
    submit = ToolCall("bash", '{"command": "submit"}')
    world = MendingWorld(BashScaffold(), [submit] * 9, num_tasks=len(SCRIPTS))
    chat = Chat(BYTES)
    engine = Reciting(chat, *SCRIPTS.values())
    collector = Collector(
        runner=runner(world, chat, engine, StudentOnly()),
        store=Store(tmp_path / "rounds", "run"),
        plan=ShuffledTasks(tasks=world.tasks("train"), seed=0),
        concurrency=2,
        keeps=EpisodeFilter(),
    )
    episodes = list(collector.collect(0, num_episodes=len(SCRIPTS)))
    by_task = {episode.task_id: episode for episode in episodes}
    ends = [by_task[str(index)].stop_reason.value for index in range(len(SCRIPTS))]
    assert ends == ["solved", "unsolved", "loop", "invalid_actions", "max_turns"]
    num_actions = sum(len(episode.turns) for episode in episodes)
    assert num_actions == 2 + 3 + 3 + 3 + 6
    expected = {
        "submission_rate": 2 / 5,
        "loop_rate": 1 / 5,
        "syntax_error_rate": 4 / num_actions,
        "runtime_error_rate": 1 / num_actions,
        "malformed_rate": 3 / num_actions,
    }
    for name, rate in expected.items():
        assert rollout_metrics(episodes)[f"rollout/{name}"] == pytest.approx(rate), name
        assert evaluation_metrics(episodes)[f"eval/{name}"] == pytest.approx(rate), name
