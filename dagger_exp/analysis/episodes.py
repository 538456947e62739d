"""Which episodes does a run have, and which of them are shown? Collected and evaluated, also while the run goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dagger_exp.errors import StoreError
from dagger_exp.store.reader import RoundFile, RoundReader
from dagger_exp.store.view import StoreView
from dagger_exp.types import Episode

COLLECT, EVALUATE = "collect", "evaluate"
"""The phases in which episodes are played, as `failures.csv` names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeGroup:
    """The episodes of one phase of one round.

    Attributes:
        phase: COLLECT or EVALUATE.
        round_index: the round that they were played in or after.
        is_open: the round is not closed, so that more may come.
        stop_reasons: why each of them ended.
        read: returns the episodes at these places; raises StoreError where the disk holds none.
    """

    phase: str
    round_index: int
    is_open: bool
    stop_reasons: Sequence[str]
    read: Callable[[Sequence[int]], list[Episode]]

    def __len__(self) -> int:
        return len(self.stop_reasons)


def episode_groups(folder: Path) -> tuple[list[EpisodeGroup], list[str]]:
    """Return the episodes of a run folder, and a sentence for each part that cannot be read."""
    groups: list[EpisodeGroup] = []
    complaints: list[str] = []
    for read in _parts(folder):
        try:
            group = read()
        except StoreError as error:
            complaints.append(str(error))
        else:
            groups += [group] if len(group) else []
    return groups, complaints


def evaluation_path(folder: Path, round_index: int) -> Path:
    """Return where a run has the episodes of the evaluation after a round."""
    earlier = folder / "eval" / f"round_{round_index:03d}.parquet"
    if earlier.exists() and not _is_again(earlier):
        return earlier
    return folder / "eval" / f"{round_index:03d}" / "episodes.parquet"


def spread(sizes: Sequence[int], limit: int) -> list[int]:
    """Return how many of each group are shown: as even as the sizes allow, and `limit` in all.

    What a small group leaves is shared by the larger ones.
    """
    shares = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    for place, index in enumerate(order):
        shares[index] = min(sizes[index], limit // (len(order) - place))
        limit -= shares[index]
    return shares


def evenly(size: int, count: int) -> list[int]:
    """Return `count` places of a sequence, from its beginning on and equally far apart."""
    return [place * size // count for place in range(count)]


def _parts(folder: Path) -> list[Callable[[], EpisodeGroup]]:
    stores = {COLLECT: folder / "rounds", EVALUATE: folder / "eval"}
    stored = [
        partial(_stored, phase, path)
        for phase, store in stores.items()
        for path in sorted(store.glob("[0-9]*"))
        if path.name.isdecimal()
    ]
    earlier = sorted((folder / "eval").glob("round_*.parquet"))
    return [*stored, *(partial(_evaluated_earlier, path) for path in earlier if not _is_again(path))]


def _is_again(path: Path) -> bool:
    """Return whether a later version has played the evaluation of this file once more."""
    return (path.parent / path.stem.removeprefix("round_")).is_dir()


def _stored(phase: str, path: Path) -> EpisodeGroup:
    view, round_index = StoreView(path.parent), int(path.name)
    if not view.is_closed(round_index):
        try:
            return _open_round(phase, view, round_index)
        except StoreError:
            if not view.is_closed(round_index):  # else the run has closed it under our eyes
                raise
    return _closed(phase, round_index, view.read(round_index))


def _open_round(phase: str, view: StoreView, round_index: int) -> EpisodeGroup:
    episodes = view.committed_episodes(round_index)
    return EpisodeGroup(
        phase=phase,
        round_index=round_index,
        is_open=True,
        stop_reasons=[episode.stop_reason.value for episode in episodes],
        read=lambda places: [episodes[place] for place in places],
    )


def _evaluated_earlier(path: Path) -> EpisodeGroup:
    """Return an evaluation of a version that kept no store of them; the name of its file tells the round."""
    found = re.fullmatch(r"round_(\d+)", path.stem)
    if not found:
        raise StoreError(f"{path} is no evaluation of this version: rename or delete it.")
    return _closed(EVALUATE, int(found[1]), RoundReader([RoundFile(path)]))


def _closed(phase: str, round_index: int, reader: RoundReader) -> EpisodeGroup:
    return EpisodeGroup(
        phase=phase,
        round_index=round_index,
        is_open=False,
        stop_reasons=[reason.value for reason in reader.stop_reasons],
        read=reader.episodes,
    )
