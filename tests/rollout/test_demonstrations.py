"""Trajectories of other programs as round 0: the rows of a rollout, whoever wrote them down, and what is set aside."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagger_exp.analysis.export import exported_rows
from dagger_exp.analysis.speakers import Speakers
from dagger_exp.chat.conversation import Chat
from dagger_exp.cli.export import write_rows
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ConfigError
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.policies.mixture import StudentOnly, TeacherOnly
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.rollout.collector import Collector
from dagger_exp.rollout.demonstrations.importing import Demonstrations
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.plan import ShuffledTasks
from dagger_exp.rollout.runner import Runner
from dagger_exp.store.schema import TIME_COLUMNS, to_table
from dagger_exp.store.store import Store
from dagger_exp.training.tokenizers import byte_tokenizer, word_tokenizer
from dagger_exp.types import Actor, Episode, StopReason

WORDS: Any = word_tokenizer(RepoRepair().vocabulary())
BYTES: Any = byte_tokenizer()
WHO_AND_WHEN = TIME_COLUMNS | {"run_id", "teacher_id", "episode_index", "beta", "coin", "kappa"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "edit",
            "parameters": {"type": "object", "properties": {"path": {"type": "string"}, "line": {"type": "integer"}}},
        },
    }
]
SYSTEM, TASK, ANSWER, END = "You repair.", "f1 fails.", "line 3 is edited", "It is done."
CALL = {"name": "edit", "arguments": '{"path": "f1", "line": 3}'}
TEXT_CALL = "I edit.\n<function=edit>\n<parameter=path>f1</parameter>\n<parameter=line>\n3\n</parameter>\n</function>"
Raw = dict[str, Any]


def runner_of(tokenizer: Any, tools: Sequence[Mapping[str, Any]] = (), **changes: Any) -> Runner:
    """Return what plays repo_repair by the world's teacher alone."""
    chat = Chat(tokenizer, tools)
    student = LanguagePolicy(engine=ScriptedEngine(end_id=chat.end_id), chat=chat, max_new_tokens=8)
    parts: dict[str, Any] = {"mixing": TeacherOnly(), "labeler": Labeler(turns="all"), "max_context_tokens": 4096}
    return Runner(world=RepoRepair(), student=student, teacher=ScriptedPolicy(), chat=chat, **(parts | changes))


def collector_of(runner: Runner, folder: Path, demonstrations: Demonstrations | None = None) -> Collector:
    """Return what collects with it."""
    return Collector(
        runner=runner,
        store=Store(folder, folder.name),
        plan=ShuffledTasks(tasks=RepoRepair().tasks("train"), seed=3),
        concurrency=4,
        keeps=lambda round_index, reason: not reason.is_infrastructure,
        demonstrations=demonstrations,
    )


def rows_of(episodes: Sequence[Episode]) -> list[Raw]:
    """Return the rows of episodes but for who recorded them and when, in the order of their tasks."""
    table = to_table("", sorted(episodes, key=lambda one: one.task_id))
    return table.drop_columns(list(WHO_AND_WHEN)).to_pylist()


def written(folder: Path, *rows: Any, name: str = "demos.jsonl") -> Path:
    """Write rows as JSON lines."""
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def imported(runner: Runner, folder: Path, kind: str, files: Any) -> list[Episode]:
    """Import files as round 0 of a new store."""
    return collector_of(runner, folder, Demonstrations(format=kind, files=files)).collect(0, num_labels=5)


def as_messages(*, is_text: bool = False) -> list[Raw]:
    """Return an episode of two turns in the form of OpenAI's chat."""
    call = {"id": "1", "type": "function", "function": CALL}
    action = {"content": TEXT_CALL} if is_text else {"content": "I edit.", "tool_calls": [call]}
    opening = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": [{"type": "text", "text": TASK}]}]
    answer = {"role": "tool", "content": ANSWER, "tool_call_id": "1"}
    return [*opening, {"role": "assistant", **action}, answer, {"role": "assistant", "content": END}]


def as_events() -> list[Raw]:
    """Return the same as events of OpenHands."""
    said = as_messages()[2]
    call = {"tool_call_id": "1", "model_response": {"id": "r", "choices": [{"message": said}]}}
    return [
        {"action": "system", "source": "agent", "args": {"content": SYSTEM}},
        {"action": "message", "source": "user", "args": {"content": TASK}},
        {"action": "recall", "source": "user", "args": {}},
        {"observation": "recall", "source": "environment", "content": "nothing"},
        {"action": "edit", "source": "agent", "args": {"path": "f1"}, "tool_call_metadata": call},
        {"observation": "edit", "source": "agent", "content": ANSWER, "tool_call_metadata": call},
        {"action": "message", "source": "agent", "args": {"content": END}},
        {"observation": "agent_state_changed", "source": "environment", "content": ""},
    ]


PLAYED = {
    "openhands events": ("openhands", {"instance_id": "a", "history": as_events(), "report": {"resolved": True}}),
    "openhands pairs": (
        "openhands",
        {"instance_id": "a", "history": [as_events()[:4], as_events()[4:]], "test_result": {"report": {"resolved": 1}}},
    ),
    "openhands completions": (
        "openhands",
        {"instance_id": "a", "history": [], "raw_completions": {"messages": as_messages()}, "resolved": True},
    ),
    "swe_gym": ("openhands", {"instance_id": "a", "run_id": "x", "resolved": True, "messages": as_messages()}),
    "swe_rebench": ("openhands", {"instance_id": "a", "resolved": 1, "trajectory": as_messages()}),
    "openhands in text": ("openhands", {"instance_id": "a", "resolved": True, "messages": as_messages(is_text=True)}),
    "swe_smith": (
        "swe_smith",
        {"instance_id": "a", "traj_id": "a.1", "resolved": True, "messages": json.dumps(as_messages(is_text=True))},
    ),
    "swe_agent": (
        "swe_agent",
        {
            "history": [*as_messages(), {"role": "user", "content": "submitted"}],
            "trajectory": [],
            "info": {"exit_status": "submitted"},
        },
    ),
    "mini_swe_agent": (
        "swe_agent",
        {
            "instance_id": "a",
            "messages": [*as_messages(), {"role": "exit", "content": "patch"}],
            "info": {"exit_status": "Submitted"},
            "trajectory_format": "mini-swe-agent-1.1",
        },
    ),
}


def test_an_import_gives_the_rows_that_a_rollout_gave(tmp_path: Path) -> None:
    played = collector_of(runner_of(WORDS), tmp_path / "played")
    episodes = played.collect(0, num_episodes=6)
    write_rows(
        tmp_path / "demos.jsonl", exported_rows(Store.open(tmp_path / "played"), [0], "executed", Speakers(None))
    )
    demonstrations = Demonstrations(format="messages", files=str(tmp_path / "*.jsonl"))
    importing = collector_of(runner_of(WORDS, mixing=StudentOnly()), tmp_path / "imported", demonstrations)
    found = importing.collect(0, num_labels=3)
    assert rows_of(found) == rows_of(episodes)
    assert [one.task_id for one in found] == sorted(one.task_id for one in episodes)
    assert {turn.actor for one in found for turn in one.turns} == {Actor.TEACHER}
    manifest = importing.store.manifest(0)
    assert manifest["num_labels"] == sum(len(one.turns) for one in episodes), "all of them, whatever the budget says"
    assert manifest["counts"]["rollout/success_rate"] == 1.0
    assert list(manifest["origin"]["files"]) == [str(tmp_path / "demos.jsonl")]
    assert rows_of(importing.collect(0, num_labels=3)) == rows_of(found), "a closed round is read, and not imported"
    later = importing.collect(1, num_labels=3)
    assert {turn.actor for one in later for turn in one.turns} == {Actor.STUDENT}, "later rounds are played"


@pytest.mark.parametrize("case", PLAYED)
def test_every_format_tells_the_same_episode(case: str, tmp_path: Path) -> None:
    kind, row = PLAYED[case]
    [episode] = imported(runner_of(BYTES, TOOLS), tmp_path / "rounds", kind, str(written(tmp_path, row, name="a.traj")))
    assert (episode.task_id, episode.stop_reason) == ("a", StopReason.SOLVED)
    first, last = episode.turns
    assert first.observation == f"{SYSTEM}\n{TASK}"
    assert (
        first.label_text
        == 'I edit.\n<tool_call>\n{"name": "edit", "arguments": {"path": "f1", "line": 3}}\n</tool_call>'
    )
    assert first.label_ids == first.response_ids
    assert (last.observation, last.label_text, last.reward) == (ANSWER, END, 1.0)
    assert BYTES.decode(episode.prompt_ids(0)).startswith(f"<|system|>{SYSTEM}\n<tools>")
    assert not last.starts_branch


def test_calls_in_text_stay_text_for_a_student_without_tools(tmp_path: Path) -> None:
    _, row = PLAYED["openhands in text"]
    [episode] = imported(runner_of(BYTES), tmp_path / "rounds", "openhands", str(written(tmp_path, row)))
    assert episode.turns[0].label_text == TEXT_CALL


@pytest.mark.parametrize(
    ("said", "label"),
    [
        (TEXT_CALL.replace("f1", "f </parameter> 1"), '"arguments": {"path": "f </parameter> 1", "line": 3}}'),
        (TEXT_CALL.replace("3\n</parameter>", "3"), "<parameter=line>\n3\n</function>"),
    ],
)
def test_a_call_in_text_is_a_call_whole_or_not_at_all(said: str, label: str, tmp_path: Path) -> None:
    rows = written(tmp_path, messages_row(("user", "go"), ("assistant", said)))
    [episode] = imported(runner_of(BYTES, TOOLS), tmp_path / "rounds", "messages", str(rows))
    assert label in str(episode.turns[0].label_text)


def messages_row(*messages: tuple[str, str], **more: Any) -> Raw:
    """Return a row of (role, content) messages."""
    return {"messages": [{"role": role, "content": content} for role, content in messages], **more}


def test_messages_between_two_turns_are_one_observation(tmp_path: Path) -> None:
    said = [("user", "go"), ("assistant", "one"), ("tool", "x"), ("tool", "y"), ("assistant", "two")]
    said += [("user", "z"), ("system", "hurry"), ("assistant", "three")]
    row = messages_row(*said)
    [episode] = imported(runner_of(BYTES), tmp_path / "rounds", "messages", str(written(tmp_path, row)))
    assert [turn.observation for turn in episode.turns] == ["go", "x\ny", "z\nhurry"]
    assert (episode.task_id, episode.stop_reason) == ("demos-000000", StopReason.UNSOLVED)


def test_a_demonstration_inside_of_a_prompt_is_context(tmp_path: Path) -> None:
    shown = [{**message, "is_demo": True} for message in messages_row(("user", "q"), ("assistant", "a"))["messages"]]
    own = messages_row(("user", "go"), ("assistant", "done"))["messages"]
    row = {"history": [*shown, *own], "info": {"exit_status": "exit_cost"}}
    [episode] = imported(
        runner_of(BYTES), tmp_path / "rounds", "swe_agent", [str(written(tmp_path, row, name="t.traj"))]
    )
    assert [(turn.observation, turn.label_text) for turn in episode.turns] == [("q\na\ngo", "done")]
    assert episode.stop_reason is StopReason.UNSOLVED


GOOD = messages_row(("user", "go"), ("assistant", "done"), task_id="good")
USELESS: dict[str, tuple[Any, str]] = {
    "text": ("no row", "it is no JSON object"),
    "unknown": ({"conversations": []}, "its format is unknown"),
    "other format": (PLAYED["swe_smith"][1], "it is of another format: choose demonstrations=swe_smith"),
    "no assistant": (messages_row(("user", "go")), "it holds no message of an assistant"),
    "open end": (
        messages_row(("user", "go"), ("assistant", "a"), ("user", "b")),
        "it ends without a message of the assistant",
    ),
    "twice": (
        messages_row(("user", "go"), ("assistant", "a"), ("assistant", "b")),
        "the assistant speaks twice in a row",
    ),
    "role": (messages_row(("boss", "go"), ("assistant", "a")), "a message has the role 'boss'"),
    "field": ({"messages": [{"role": "user"}, {"content": "a"}]}, "a field is missing or holds something else"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "a"}]},
        "a message shows something else than text",
    ),
    "weight": (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]},
        "some of its messages are not to be trained on (weight 0)",
    ),
    "long": (messages_row(("user", "go " * 100), ("assistant", "a")), "it is longer than student.max_context_tokens"),
    "long answer": (
        messages_row(("user", "go"), ("assistant", "a" * 300)),
        (
            "The answer of the teacher 'messages' is longer than the student's context has room for: "
            "raise student.max_context_tokens or lower teacher.max_new_tokens"
        ),
    ),
    "thought": (
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "reasoning_content": "b"},
            ]
        },
        "the student's chat template cannot write the teacher's tool calls or reasoning: it leaves a part of them out",
    ),
}


@pytest.mark.parametrize("case", USELESS)
def test_what_cannot_be_used_is_set_aside_and_said(case: str, tmp_path: Path) -> None:
    row, reason = USELESS[case]
    said: list[str] = []
    runner = runner_of(BYTES, max_context_tokens=256)
    runner.watchdog.say = said.append
    collector = collector_of(
        runner, tmp_path / "rounds", Demonstrations(format="messages", files=str(written(tmp_path, row, GOOD)))
    )
    assert [one.task_id for one in collector.collect(0, num_episodes=9)] == ["good"]
    assert collector.store.manifest(0)["origin"]["set_aside"] == {reason: 1}
    assert said[0] == f"1 of 2 demonstrations are set aside: 1 x {reason}."
    alone = Demonstrations(format="messages", files=str(written(tmp_path, row, row, name="useless.jsonl")))
    with pytest.raises(ConfigError) as refused:
        collector_of(runner, tmp_path / "none", alone).collect(0, num_labels=1)
    assert str(refused.value) == f"none of the 2 trajectories of demonstrations.files can be used: 2 x {reason}."


def test_a_closed_vocabulary_that_lacks_the_words_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 x the student's tokenizer does not know all words"):
        imported(runner_of(WORDS), tmp_path / "rounds", "messages", str(written(tmp_path, GOOD)))


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([{"action": "run", "source": "agent", "args": {"command": "ls"}}], "do not hold what the model said"),
        ([{"action": "condensation", "source": "agent", "args": {}}], "its history was condensed"),
        ([{"kind": "ActionEvent"}], "a field is missing or holds something else"),
        ([{"step": 1}], "its events are not those of OpenHands"),
    ],
)
def test_events_that_do_not_tell_the_conversation_are_set_aside(events: list[Raw], reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, {"instance_id": "a", "history": events})
    with pytest.raises(ConfigError, match=reason):
        imported(runner_of(BYTES), tmp_path / "rounds", "openhands", str(path))


def test_several_calls_of_one_answer_are_one_turn(tmp_path: Path) -> None:
    events = as_events()
    both = [*events[:6], *events[4:6], *events[6:]]
    row = {"instance_id": "a", "history": both, "report": {"resolved": False}}
    [episode] = imported(runner_of(BYTES, TOOLS), tmp_path / "rounds", "openhands", str(written(tmp_path, row)))
    assert [turn.observation for turn in episode.turns] == [f"{SYSTEM}\n{TASK}", f"{ANSWER}\n{ANSWER}"]


def parquet(path: Path, rows: Sequence[Raw]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)


def gzipped(path: Path, rows: Sequence[Raw]) -> None:
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))


def plain(path: Path, rows: Sequence[Raw]) -> None:
    path.write_text(json.dumps(list(rows)))


@pytest.mark.parametrize(("name", "write"), [("a.parquet", parquet), ("a.jsonl.gz", gzipped), ("a.json", plain)])
def test_files_of_every_kind_are_read_in_the_order_of_their_tasks(
    name: str, write: Callable[[Path, Sequence[Raw]], None], tmp_path: Path
) -> None:
    rows = [messages_row(("user", "go"), ("assistant", text), task_id=task) for task, text in ("b1", "a2", "b3")]
    write(tmp_path / name, rows)
    found = imported(runner_of(BYTES), tmp_path / "rounds", "messages", [str(tmp_path / name), f"{tmp_path}/a.*"])
    assert [(one.task_id, one.turns[0].label_text) for one in found] == [("a", "2"), ("b", "1"), ("b", "3")]
    again = imported(runner_of(BYTES), tmp_path / "again", "messages", str(tmp_path / name))
    assert rows_of(again) == rows_of(found)


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    (tmp_path / "damaged.traj").write_text("{")
    (tmp_path / "damaged.json").write_text("[" * 9999)
    (tmp_path / "damaged.cut.jsonl.gz").write_bytes(gzip.compress(b"{}")[:-9])
    (tmp_path / "damaged.jsonl.gz").write_bytes(gzip.compress(b"")[:10] + b"no deflate")
    good = written(tmp_path, GOOD)
    files = [str(tmp_path / "damaged.*"), str(good)]
    collector = collector_of(runner_of(BYTES), tmp_path / "rounds", Demonstrations(format="messages", files=files))
    assert len(collector.collect(0, num_labels=1)) == 1
    assert collector.store.manifest(0)["origin"]["set_aside"] == {"it is no JSON object": 5}


def test_a_line_ends_where_json_lines_end(tmp_path: Path) -> None:
    rows = [messages_row(("user", f"go{mark}on"), ("assistant", "a")) for mark in ("\u2028", "\x85")]
    path = tmp_path / "a.jsonl"
    path.write_text("\ufeff" + "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    reading = Demonstrations(format="messages", files=str(path)).read()
    assert [found.opening[0].content for found in reading.demonstrations] == ["go\u2028on", "go\x85on"]
    assert not reading.set_aside


def test_an_import_that_was_killed_goes_on(tmp_path: Path) -> None:
    rows = [messages_row(("user", "go"), ("assistant", "a"), task_id=task) for task in "abc"]
    demonstrations = Demonstrations(format="messages", files=str(written(tmp_path, *rows)))
    collector = collector_of(runner_of(BYTES), tmp_path / "rounds", demonstrations)

    def killed(episode: Episode) -> None:
        if episode.task_id == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collector.collect(0, num_labels=1, on_episode=killed)
    assert sorted(collector.store.committed(0)) == [0, 1]
    assert [one.task_id for one in collector.collect(0, num_labels=1)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ("{}/none.jsonl", "demonstrations.files names {}/none.jsonl, but there is no such file."),
        ("{}/*.traj", "demonstrations.files names {}/*.traj, but there is no such file."),
        ("{}", "demonstrations.files names {}, but it is a folder: give its files, as in '{}/**/*.traj'."),
    ],
)
def test_files_that_are_not_there_are_named(files: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        Demonstrations(format="openhands", files=files.replace("{}", str(tmp_path)))
    assert str(refused.value) == sentence.replace("{}", str(tmp_path))


def test_an_episode_without_a_grade_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    runner = runner_of(BYTES)
    runner.watchdog.say = said.append
    imported(runner, tmp_path / "rounds", "messages", str(written(tmp_path, GOOD)))
    assert said == ["1 demonstrations have no grade: those that were submitted count as solved, others do not."]
