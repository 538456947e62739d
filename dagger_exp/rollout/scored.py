"""How likely does the teacher find what the student said? One request for each stretch of tokens without a branch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from dagger_exp.errors import ConfigError, PolicyError
from dagger_exp.protocols import Policy, Scorer, Scores
from dagger_exp.rollout.budget import TeacherBudget
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.types import Actor, Turn, Usage

MAX_LOGPROBS = 20
"""What a vLLM server tells at each place, where its line says no more."""


async def scored(turns: Sequence[Turn], scorer: Scorer, num_top: int, budget: TeacherBudget) -> list[Turn]:
    """Return the turns of an episode, those of the student with the teacher's log-probabilities of their tokens.

    Args:
        turns: in order.
        scorer: the teacher, whose vocabulary is the student's.
        num_top: how many of the likeliest tokens to record at each place.
        budget: of the teacher, which is looked at before each request.
    """
    done: list[Turn] = []
    for stretch in _stretches(turns):
        asked = _until_student(stretch)
        ids = [token for turn in asked for token in (*turn.context_ids, *turn.response_ids)]
        scores = Scores(())
        if asked:
            budget.ask()
            scores = await scorer.score(ids, num_top)
            budget.spend(scores.usage or Usage())
        begin = -1  # nothing predicts the first token
        for turn in asked:
            begin += len(turn.context_ids)
            span = slice(begin, begin + len(turn.response_ids))
            done.append(_with(turn, scores, span) if turn.actor is Actor.STUDENT else turn)
            begin = span.stop
        done += stretch[len(asked) :]
    return done


async def try_scoring(teacher: Policy, labeler: Labeler, token_id: int) -> None:
    """Ask the teacher for log-probabilities once, where labels will have them; raises `ConfigError` if it has none."""
    if not labeler.logprobs:
        return
    try:
        await cast(Scorer, teacher).score([token_id, token_id], labeler.num_top)
    except PolicyError as error:
        raise ConfigError(
            f"the teacher {teacher.id!r} gives no log-probabilities ({str(error).rstrip('.')}): serve it with vLLM and "
            f"--max-logprobs {max(labeler.num_top, MAX_LOGPROBS)}, or set labeler.logprobs=false."
        ) from error


def _stretches(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    """Yield turns whose tokens follow one another."""
    stretch: list[Turn] = []
    for turn in turns:
        if turn.starts_branch and stretch:
            yield stretch
            stretch = []
        stretch.append(turn)
    if stretch:
        yield stretch


def _until_student(stretch: Sequence[Turn]) -> Sequence[Turn]:
    """Return a stretch as far as its last turn of the student: nobody asks for what the teacher said after it."""
    places = [place for place, turn in enumerate(stretch, 1) if turn.actor is Actor.STUDENT]
    return stretch[: max(places, default=0)]


def _with(turn: Turn, scores: Scores, span: slice) -> Turn:
    return replace(
        turn,
        teacher_logprobs=list(scores.logprobs[span]),
        teacher_top_ids=[token for top in scores.top_ids[span] for token in top],
        teacher_top_logprobs=[value for top in scores.top_logprobs[span] for value in top],
    )
