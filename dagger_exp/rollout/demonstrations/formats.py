"""What is a trajectory of another program? Its rows as messages, and whether it solved its task.

openhands   rows of `messages` or `trajectory` as in the published sets, or of `output.jsonl` with events (`history`) of
            OpenHands 0.x (`action`, `observation`) or 1.x (`kind`)
swe_agent   a `.traj` of SWE-agent (`history`, `info`), or a `.traj.json` of mini-swe-agent (`messages`, `info`)
swe_smith   rows of `messages`, as a list or as JSON text, with `instance_id` and `resolved`
messages    rows of `messages` and nothing that tells whose they are

A trajectory that was graded is solved where its grade says so. One that was not is solved where it was submitted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from dagger_exp.rollout.demonstrations.messages import Unreadable, as_one, read_message
from dagger_exp.types import Message

Raw = Mapping[str, Any]

FORMATS = ("openhands", "swe_agent", "swe_smith", "messages")
UNSEEN_ACTIONS = ("recall", "change_agent_state", "null")
UNSEEN_OBSERVATIONS = ("recall", "agent_state_changed", "null")
UNSEEN_KINDS = (
    "CondensationRequest",
    "ConversationStateUpdateEvent",
    "PauseEvent",
    "TokenEvent",
    "LLMCompletionLogEvent",
)
"""Events of OpenHands that its model is not shown."""
CONDENSED = "its history was condensed, so nobody knows what the model was shown"


@dataclass(frozen=True, slots=True)
class Demonstration:
    """An episode that somebody else has played.

    `observations` are what the actions were answered, but the last one: nobody acted on that.
    """

    task_id: str
    opening: tuple[Message, ...]
    actions: tuple[Message, ...]
    observations: tuple[Message, ...]
    solved: bool
    is_graded: bool


def read_demonstration(row: Any, format: str, default_id: str) -> Demonstration:  # noqa: A002 - as the YAML's key
    """Return the demonstration of a row.

    Args:
        row: as the file has it.
        format: one of `FORMATS`.
        default_id: of its task, where the row names none.

    Raises:
        Unreadable: it is of another format, lacks something, or was not ended by the assistant.
    """
    if not isinstance(row, Mapping):
        raise Unreadable("it is no JSON object")
    row = {name: value for name, value in row.items() if value is not None}  # a table has all columns in all rows
    found = recognised(row)
    if found is None:
        raise Unreadable("its format is unknown")
    if found not in (format, "messages") or (found == "messages" and format == "swe_agent"):
        raise Unreadable(f"it is of another format: choose demonstrations={found}")
    try:
        return _read(row, default_id)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Unreadable("a field is missing or holds something else") from error


def recognised(row: Raw) -> str | None:
    """Return whose format a row has; None where it is no trajectory that is known."""
    if isinstance(row.get("info"), Mapping) and row.keys() & {"history", "messages"}:
        return "swe_agent"
    if row.keys() & {"history", "raw_completions", "trajectory"}:
        return "openhands"
    if "messages" not in row:
        return None
    if row.keys() & {"test_result", "run_id"}:
        return "openhands"
    return "swe_smith" if row.keys() & {"traj_id", "patch"} else "messages"


def _read(row: Raw, default_id: str) -> Demonstration:
    raw = _raw_messages(row)
    if any(message.get("weight") == 0 for message in raw if message.get("role") == "assistant"):
        raise Unreadable("some of its messages are not to be trained on (weight 0)")
    num_shown = max((place + 1 for place, message in enumerate(raw) if message.get("is_demo")), default=0)
    messages = [read_message(message) for message in raw]
    roles = [message.role for message in messages]
    if "assistant" not in roles[num_shown:]:
        raise Unreadable("it holds no message of an assistant")
    begin = roles.index("assistant", num_shown)
    actions, observations = _turns(messages[begin:])
    grade, status = _grade(row), str((row.get("info") or row).get("exit_status") or "").lower()
    return Demonstration(
        task_id=str(row.get("instance_id") or row.get("task_id") or default_id),
        opening=tuple(messages[:begin]),
        actions=actions,
        observations=observations,
        solved=status == "submitted" if grade is None else grade,
        is_graded=grade is not None,
    )


def _turns(messages: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Return actions and observations in turn; messages between two of the assistant's are one observation."""
    if messages[-1].role != "assistant":
        raise Unreadable("it ends without a message of the assistant")
    groups = [tuple(group) for _, group in groupby(messages, lambda message: message.role == "assistant")]
    if any(len(group) > 1 for group in groups[::2]):
        raise Unreadable("the assistant speaks twice in a row")
    return tuple(group[0] for group in groups[::2]), tuple(map(as_one, groups[1::2]))


def _raw_messages(row: Raw) -> list[Raw]:
    """Return the messages that the model saw and said."""
    if isinstance(row.get("info"), Mapping):
        own = row["history"] if "history" in row else row["messages"]
        return _without_last_answer([message for message in own if message.get("role") != "exit"])
    if completions := row.get("raw_completions"):
        return list(completions["messages"])
    if history := row.get("history"):
        events = list(_flat(history))
        is_new = all("kind" in event for event in events)
        return _without_last_answer(_from_kinds(events) if is_new else list(_from_events(iter(events))))
    said = row.get("messages") or row["trajectory"]
    return json.loads(said) if isinstance(said, str) else list(said)


def _without_last_answer(messages: list[Raw]) -> list[Raw]:
    """Leave out the answer to the last action, which logs of an agent hold and nobody has acted on."""
    while messages and messages[-1].get("role", "assistant" if "output" in messages[-1] else "") != "assistant":
        messages = messages[:-1]
    return messages


def _flat(history: Sequence[Any]) -> Iterator[Raw]:
    """Yield events; older logs hold pairs of an action and its observation."""
    for event in history:
        yield from event if isinstance(event, list) else [event]


def _from_events(events: Iterator[Raw]) -> Iterator[Raw]:
    """Yield the messages behind the events of OpenHands: several actions may come from one of the model's."""
    last: object = None
    for event in events:
        call = event.get("tool_call_metadata") or {}
        if "action" not in event:
            yield from _shown(event, "tool" if call else "user")
        elif response := call.get("model_response"):
            if response["id"] != last:
                yield response["choices"][0]["message"]
            last = response["id"]
        elif event["action"] not in UNSEEN_ACTIONS:
            yield _said(event)


def _from_kinds(events: Sequence[Raw]) -> list[Raw]:
    """Return the messages behind the events of OpenHands 1.x; actions of one response are one message."""
    messages: list[Raw] = []
    answers: dict[object, dict[str, Any]] = {}
    for event in events:
        if event["kind"] != "ActionEvent":
            messages += _of_kind(event)
            continue
        response = event.get("llm_response_id") or event["id"]
        if response not in answers:
            thoughts = {name: event.get(name) for name in ("reasoning_content", "thinking_blocks")}
            answers[response] = {"role": "assistant", "content": event["thought"], "tool_calls": [], **thoughts}
            messages.append(answers[response])
        answers[response]["tool_calls"].append(event["tool_call"])
    return messages


def _of_kind(event: Raw) -> list[Raw]:
    """Return the message of an event that is no action; nothing where the model is not shown it."""
    match event["kind"]:
        case "SystemPromptEvent":
            return [{"role": "system", "content": [event["system_prompt"]]}]
        case "MessageEvent":
            said = event["llm_message"]
            parts = [*said["content"], *event.get("extended_content", ())]
            return [{"role": said["role"], "content": parts, "tool_calls": said.get("tool_calls")}]
        case "ObservationEvent":
            return [{"role": "tool", "content": _seen(event["observation"])}]
        case "AgentErrorEvent" | "UserRejectObservation":
            return [{"role": "tool", "content": event.get("error") or event["rejection_reason"]}]
    if event["kind"].startswith("Condensation") and event["kind"] != "CondensationRequest":
        raise Unreadable(CONDENSED)
    if event["kind"] not in UNSEEN_KINDS:
        raise Unreadable(f"an event of the kind {event['kind']} is not known")
    return []


def _seen(observation: Raw) -> list[Raw]:
    """Return what a tool showed, with the lines that OpenHands puts around a command's output."""
    around = observation.get("metadata") or {}
    lines = [{"type": "text", "text": around.get(name) or ""} for name in ("prefix", "suffix")]
    return [part for part in (lines[0], *observation["content"], lines[1]) if part.get("text") or "image" in str(part)]


def _shown(event: Raw, role: str) -> Iterator[Raw]:
    """Yield what an observation showed to the model."""
    if "observation" not in event:
        raise Unreadable("its events are not those of OpenHands")
    if event["observation"] not in UNSEEN_OBSERVATIONS:
        yield {"role": role, "content": event["content"]}


def _said(event: Raw) -> Raw:
    """Return the message of an action that is not a call of a tool."""
    if event["action"] == "condensation":
        raise Unreadable(CONDENSED)
    if event["action"] not in ("system", "message"):
        raise Unreadable("its events do not hold what the model said")
    role = "system" if event["action"] == "system" else {"agent": "assistant"}.get(event["source"], "user")
    return {"role": role, "content": event["args"]["content"]}


def _grade(row: Raw) -> bool | None:
    """Return whether a row says that its task is solved; None where it says nothing."""
    report = row.get("report") or (row.get("test_result") or {}).get("report") or {}
    for verdict in (row.get("resolved"), report.get("resolved"), row.get("reward")):
        if verdict is not None:
            return float(verdict) > 0
    return None
