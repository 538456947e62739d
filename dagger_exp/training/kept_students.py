"""Which students outlive their round? All, the best one, or only the last, which is in `student/` anyway."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from dagger_exp.store.files import ASIDE_SUFFIX
from dagger_exp.training.student import Student


@dataclass(frozen=True, kw_only=True)
class KeptStudents:
    """The students of rounds, each in a folder like `student/`.

    Args:
        student: with the weights of now.
        folder: `student_rounds/` of the run.
        which: `all`; `best`, the one of the best round; or `last`, none of them.
    """

    student: Student
    folder: Path
    which: str

    def keep(self, round_index: int, best_round: int | None) -> None:
        """Keep the student of a round whose weights it has now, and of the others those that are still wanted.

        A folder is there whole or not at all, and a second time changes nothing.
        """
        if self.which == "last" or (self.which == "best" and best_round != round_index):
            return
        place = self.folder / f"{round_index:03d}"
        aside = place.with_suffix(ASIDE_SUFFIX)
        for old in (aside, place):
            shutil.rmtree(old, ignore_errors=True)
        self.student.save(aside)
        aside.rename(place)
        others = [other for other in self.folder.iterdir() if other != place]
        for other in others if self.which == "best" else []:
            shutil.rmtree(other)
