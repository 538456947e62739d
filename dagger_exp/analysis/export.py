"""What did a store record, as messages for other trainers? Rows of JSON with a flag on what is to be learned.

A row has `messages`, each with the `weight` 0 or 1 of its loss. One that ends in a label also has them as `prompt` and
`completion`, the form in which TRL's SFTTrainer learns the completion alone, with any chat template.

Calls of tools stand in the text, as the student's own template wrote them. Who said what of an observation is read off
its tokens (`speakers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dagger_exp.analysis.speakers import Said, Speakers
from dagger_exp.store.view import StoreView
from dagger_exp.types import Episode, Turn

Row = dict[str, Any]

KINDS = ("labels", "executed")
"""Of rows: those of labels that differ from what was executed, and whole episodes as they were executed."""


def exported_rows(view: StoreView, rounds: Sequence[int], only: str | None, speakers: Speakers) -> Iterator[Row]:
    """Yield the rows of closed rounds; an episode that infrastructure ended has none.

    Args:
        view: of the store.
        rounds: to be exported.
        only: `executed`: a row per episode, whose weights say which of its actions are labels; `labels`: a row per
            label that differs from the action that was executed; None: a row per label, whoever acted.
        speakers: take what was shown apart.

    Raises:
        StoreError: a round is not closed, or damaged.
    """
    for round_index in rounds:
        reader = view.read(round_index)
        for index in range(len(reader)):
            episode = reader.episode(index)
            if episode.turns and not episode.stop_reason.is_infrastructure:
                shown = [speakers.shown(turn) for turn in episode.turns]
                yield from [_executed_row(episode, shown)] if only == "executed" else _label_rows(episode, shown, only)


def _executed_row(episode: Episode, shown: Sequence[list[Said]]) -> Row:
    """Return an episode as it was executed."""
    messages: list[Said] = []
    for turn, observation in zip(episode.turns, shown, strict=True):
        messages += [*observation, _said(turn.response_text, weight=int(_is_label(turn)))]
    return _facts(episode) | {"messages": messages}


def _label_rows(episode: Episode, shown: Sequence[list[Said]], only: str | None) -> Iterator[Row]:
    """Yield a row for each label: what stood before it, and the label."""
    before: list[Said] = []
    for turn, observation in zip(episode.turns, shown, strict=True):
        before = [*before, *observation]
        if turn.label_text is not None and not (only == "labels" and _is_label(turn)):
            label = _said(turn.label_text, weight=1)
            parts = {"messages": [*before, label], "prompt": _plain(before), "completion": _plain([label])}
            yield _facts(episode) | {"turn_index": turn.turn_index, **parts}
        before = [*before, _said(turn.response_text, weight=0)]


def _facts(episode: Episode) -> Row:
    return {
        "task_id": episode.task_id,
        "round_index": episode.round_index,
        "episode_index": episode.episode_index,
        "resolved": episode.solved,
    }


def _is_label(turn: Turn) -> bool:
    """Whether what was executed is what the teacher would have done."""
    return turn.label_ids is not None and tuple(turn.label_ids) == tuple(turn.response_ids)


def _said(text: str, weight: int) -> Said:
    return {"role": "assistant", "content": text, "weight": weight}


def _plain(messages: Sequence[Said]) -> list[Said]:
    """Return messages as a chat template takes them."""
    return [{"role": message["role"], "content": message["content"]} for message in messages]
