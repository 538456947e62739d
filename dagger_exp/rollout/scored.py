"""How likely does the teacher find what the student said? One request for each stretch of tokens without a branch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from dagger_exp.protocols import Scorer, Scores
from dagger_exp.types import Actor, Turn


async def scored(turns: Sequence[Turn], scorer: Scorer, num_top: int) -> list[Turn]:
    """Return the turns of an episode, those of the student with the teacher's log-probabilities of their tokens.

    Args:
        turns: in order.
        scorer: the teacher, whose vocabulary is the student's.
        num_top: how many of the likeliest tokens to record at each place.
    """
    done: list[Turn] = []
    for stretch in _stretches(turns):
        ids = [token for turn in stretch for token in (*turn.context_ids, *turn.response_ids)]
        scores = await scorer.score(ids, num_top)
        begin = -1  # nothing predicts the first token
        for turn in stretch:
            begin += len(turn.context_ids)
            span = slice(begin, begin + len(turn.response_ids))
            done.append(_with(turn, scores, span) if turn.actor is Actor.STUDENT else turn)
            begin = span.stop
    return done


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


def _with(turn: Turn, scores: Scores, span: slice) -> Turn:
    return replace(
        turn,
        teacher_logprobs=list(scores.logprobs[span]),
        teacher_top_ids=[token for top in scores.top_ids[span] for token in top],
        teacher_top_logprobs=[value for top in scores.top_logprobs[span] for value in top],
    )
