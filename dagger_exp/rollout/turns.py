"""What is recorded of a turn, and what an env may answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dagger_exp.chat.conversation import Chat, Prompt
from dagger_exp.errors import (
    BudgetError,
    ContextError,
    DaggerError,
    EnvError,
    LabelError,
    TeacherError,
    first_line,
)
from dagger_exp.types import Actor, Choice, Message, Response, StepResult, StopReason, Turn, Usage

UNKNOWN_WORDS = "the student's tokenizer does not know all words"


class Said(NamedTuple):
    """A response, and its token ids as the student would have written it."""

    response: Response
    token_ids: Sequence[int]


class Taken(NamedTuple):
    """What came out of a turn: the action, the label or why there is none, and the answer of the env."""

    action: Said
    label: Said | LabelError | None
    result: StepResult


def record(
    chat: Chat,
    prompt: Prompt,
    choice: Choice,
    taken: Taken,
    turn_index: int,
    observation: str,
    num_cut_chars: int,
    wall_time_s: float,
) -> Turn:
    """Return the record of a turn."""
    action, label, result = taken
    response = action.response
    asked = action if choice.actor is Actor.TEACHER else label
    usage = asked.response.usage if isinstance(asked, Said) else Usage()
    return Turn(
        turn_index=turn_index,
        actor=choice.actor,
        observation=observation,
        context_ids=prompt.context_ids,
        starts_branch=prompt.starts_branch,
        response_text=_text(chat, action),
        response_ids=action.token_ids,
        sampling_logprobs=response.logprobs,
        label_text=_text(chat, label) if isinstance(label, Said) else None,
        label_ids=label.token_ids if isinstance(label, Said) else None,
        label_error=first_line(label) if isinstance(label, LabelError) else "",
        beta=choice.beta,
        coin=choice.coin,
        kappa=choice.kappa,
        valid=result.valid,
        action_error=result.action_error,
        reward=result.reward,
        finish_reason=response.finish_reason,
        policy_version=response.policy_version,
        temperature=response.temperature,
        top_p=response.top_p,
        num_teacher_prompt_tokens=usage.num_prompt_tokens,
        num_teacher_response_tokens=usage.num_response_tokens,
        num_cut_chars=num_cut_chars,
        wall_time_s=wall_time_s,
    )


def _text(chat: Chat, said: Said) -> str:
    """Return a response to be read: with its tool calls, as the student would write them."""
    message = said.response.message
    return chat.parse(said.token_ids).content if message.tool_calls or message.reasoning else message.content


def opening(messages: Any) -> list[Message]:
    """Return the opening messages of an env; raises `EnvError` where they are none."""
    found = list(messages) if isinstance(messages, Sequence) else []
    if not found or not all(isinstance(one, Message) and isinstance(one.content, str) for one in found):
        raise EnvError(f"the reset of the env returned {messages!r:.200}, not a list of `Message`.")
    return found


def checked(result: Any) -> StepResult:
    """Return the answer of an env to an action; raises `EnvError` where it is none."""
    if not (isinstance(result, StepResult) and isinstance(result.observation, Message)):
        raise EnvError(f"the env returned {result!r:.200} from `step`, not a `StepResult` with a `Message`.")
    return result


def check_words(
    chat: Chat, token_ids: Sequence[int], text: str, what: str, error_type: type[EnvError | LabelError]
) -> None:
    """Refuse a text with a word outside the vocabulary of a word-level tokenizer.

    Args:
        chat: of the student.
        token_ids: with the text and, maybe, with what others said: only its own words count.
        text: to be checked.
        what: the text, for the message.
        error_type: to raise; its message names the word.
    """
    unknown = getattr(chat.tokenizer, "unk_token_id", None)
    if unknown in (None, chat.end_id) or unknown not in token_ids:
        return
    if word := next((word for word in text.split() if unknown in chat.encode(word)), None):
        raise error_type(f"{UNKNOWN_WORDS}: {word!r} of {what}.")


def stop_reason_of(failure: DaggerError) -> StopReason:
    """Return the stop reason of a failure, by the boundary that it crossed."""
    match failure:
        case EnvError():
            return StopReason.SANDBOX
        case BudgetError():
            return StopReason.BUDGET
        case LabelError() | TeacherError():
            return StopReason.TEACHER
        case ContextError():
            return StopReason.CONTEXT
        case _:
            return StopReason.ENGINE
