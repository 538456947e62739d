"""`repo_repair`: a small simulated software-repair game, where early mistakes lead to states no teacher visits.

A task is a repository of a few files with several bugs, repaired one after the other. `test` names the symptom of the
current bug. A symptom points to its usual file with probability `symptom_reliability` (one fixed map for the whole
world); else the bug is elsewhere, and only the teacher knows where. Opening a wrong file says where to look, a wrong
edit breaks the file silently until `revert`. The teacher never errs, so its own episodes never show either.

    test -> fail S | pass | err broken F        open F -> F line N | F clean see G
    edit F N -> ok | err broken F               revert F -> ok          submit -> the end          else -> err
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import overload

from dagger_exp.errors import ConfigError
from dagger_exp.seeding import draw, integer, uniform
from dagger_exp.types import Key, Message, StepResult, StopReason, Task

WORLD_FILES = 8
"""Names of files in the world; a repository holds `num_files` of them."""
SPLITS = {0: "heldout", 1: "validation"}
"""The split of one task in eight each, by a hash of what it holds; the others are for training."""


@dataclass(frozen=True, slots=True)
class Bug:
    """What `test` says, and the edit that repairs it."""

    symptom: str
    file: str
    line: str


class RepoRepair:
    """The world: an endless supply of seeded tasks, split by a hash of what they hold, so no two splits share one.

    Args:
        num_files: files of a repository, out of `WORLD_FILES` names.
        num_bugs: bugs of a task, each in a file of its own.
        num_symptoms: different answers of a failing test in the world.
        num_lines: lines of a file.
        symptom_reliability: probability that a symptom's usual file holds the bug; imitation of the teacher's own
            episodes alone succeeds with about this probability to the power of `num_bugs`.
        max_turns: an episode ends unsolved after this many turns.
        num_train_tasks: size of the training split.
        num_validation_tasks: size of the validation split; may be 0.
        num_heldout_tasks: size of the held-out split.

    Raises:
        ConfigError: the numbers do not fit each other.
    """

    def __init__(
        self,
        *,
        num_files: int = 5,
        num_bugs: int = 3,
        num_symptoms: int = 12,
        num_lines: int = 10,
        symptom_reliability: float = 0.75,
        max_turns: int = 24,
        num_train_tasks: int = 100_000,
        num_validation_tasks: int = 1_000,
        num_heldout_tasks: int = 1_000,
    ) -> None:
        if not 1 <= num_bugs <= num_files <= WORLD_FILES or num_files < 2:
            raise ConfigError(
                f"env.num_bugs and env.num_files: 1 <= num_bugs <= num_files, 2 <= num_files <= {WORLD_FILES}."
            )
        if num_symptoms < max(WORLD_FILES, 2 * num_bugs):
            raise ConfigError(f"env.num_symptoms must be at least {max(WORLD_FILES, 2 * num_bugs)}.")
        if num_bugs == num_files and num_symptoms < 2 * WORLD_FILES:  # a misleading symptom could be out of stock
            raise ConfigError(f"env.num_bugs equal to env.num_files needs env.num_symptoms >= {2 * WORLD_FILES}.")
        if min(num_lines, max_turns) < 1:
            raise ConfigError("env.num_lines and env.max_turns must be at least 1.")
        if min(num_train_tasks, num_validation_tasks + 1, num_heldout_tasks) < 1:
            raise ConfigError(
                "env.num_train_tasks and env.num_heldout_tasks must be at least 1, env.num_validation_tasks at least 0."
            )
        if not 0.0 <= symptom_reliability <= 1.0:
            raise ConfigError("env.symptom_reliability is a probability in [0, 1].")
        self.num_files, self.num_bugs, self.num_symptoms = num_files, num_bugs, num_symptoms
        self.num_lines, self.symptom_reliability, self.max_turns = num_lines, symptom_reliability, max_turns
        self._sizes = {
            "train": num_train_tasks,
            "validation": num_validation_tasks,
            "heldout": num_heldout_tasks,
        }

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of `train`, `validation` or `heldout`, each made when it is looked at."""
        return TaskSequence(self, split, self._sizes[split])

    def make(self, task: Task) -> RepoRepairEnv:
        """Return a fresh repository."""
        lines = [str(line) for line in range(self.num_lines)]
        return RepoRepairEnv(task.data["files"], lines, [Bug(*bug) for bug in task.data["bugs"]])

    def vocabulary(self) -> list[str]:
        """Return every word of the world's messages, in a fixed order."""
        verbs = "repo test open edit revert submit fail pass line clean see ok err broken".split()
        files = [f"f{i}" for i in range(WORLD_FILES)]
        symptoms = [f"s{i}" for i in range(self.num_symptoms)]
        return verbs + files + symptoms + [str(i) for i in range(self.num_lines)]

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Need nothing."""
        return nullcontext()

    def usual_file(self, symptom: str) -> str:
        """Return the file that a symptom points to; the same in every task."""
        return f"f{int(symptom[1:]) % WORLD_FILES}"

    def draw_task(self, split: str, index: int) -> Task:
        """Return a task: attempt after attempt until one falls into the split."""
        for attempt in range(10_000):
            key = Key(seed=attempt, round_index=0, task_id=f"{split}-{index}", episode_index=0)
            files = _sample(key, "files", [f"f{i}" for i in range(WORLD_FILES)], self.num_files)
            bugs = self._bugs(key, files)
            content = Key(0, 0, f"{sorted(files)}{bugs}", 0)  # the order of files makes no other task
            if SPLITS.get(integer(content, "split", 8), "train") == split:
                data = {"files": files, "bugs": [(bug.symptom, bug.file, bug.line) for bug in bugs]}
                return Task(id=f"{split}-{index:06d}", split=split, data=data)
        raise ConfigError(f"env leaves no room for a {split} split; raise env.num_files or env.num_lines.")

    def _bugs(self, key: Key, files: list[str]) -> list[Bug]:
        places = _sample(key, "bug files", files, self.num_bugs)
        usual = [uniform(key, f"usual {n}") < self.symptom_reliability for n in range(self.num_bugs)]
        symptoms: dict[int, str] = {}
        # Bugs in their usual place choose first: else a misleading symptom could take theirs and skew the rate.
        for n in sorted(range(self.num_bugs), key=lambda n: not usual[n]):
            pool = self._symptoms(places[n], usual[n], files, taken=set(symptoms.values()))
            symptoms[n] = pool[integer(key, f"symptom {n}", len(pool))]
        lines = [str(integer(key, f"line {n}", self.num_lines)) for n in range(self.num_bugs)]
        return [Bug(symptoms[n], places[n], lines[n]) for n in range(self.num_bugs)]

    def _symptoms(self, file: str, usual: bool, files: Sequence[str], taken: set[str]) -> list[str]:
        """Return free symptoms that point to the file, or else to another file of the repository."""
        free = [s for s in (f"s{i}" for i in range(self.num_symptoms)) if s not in taken]
        pointing = [s for s in free if self.usual_file(s) == file]
        misleading = [s for s in free if self.usual_file(s) != file and self.usual_file(s) in files]
        return (pointing or misleading) if usual else (misleading or pointing)


class TaskSequence(Sequence[Task]):
    """A split as a sequence whose items are made when they are looked at."""

    def __init__(self, world: RepoRepair, split: str, size: int) -> None:
        self._world, self._split, self._size = world, split, size

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if not 0 <= index < self._size:
            raise IndexError(index)
        return self._world.draw_task(self._split, index)

    def __iter__(self) -> Iterator[Task]:
        return (self[i] for i in range(self._size))


@dataclass
class RepoRepairEnv:
    """One episode of one task; see the module for the commands."""

    files: Sequence[str]
    lines: Sequence[str]
    bugs: Sequence[Bug]
    num_fixed: int = 0
    broken: list[str] = field(default_factory=list)
    passed: bool = False
    located: bool = False
    """Whether a test or a file has told where to look for the current bug."""
    shown: bool = False
    """Whether the current bug's line has been seen."""

    async def reset(self) -> list[Message]:
        return [Message("user", " ".join(["repo", *self.files]))]

    async def step(self, action: Message) -> StepResult:
        match action.content.split():
            case ["test"]:
                return self._answer(self._test())
            case ["open", file] if file in self.files:
                return self._answer(self._open(file))
            case ["edit", file, line] if file in self.files and line in self.lines:
                return self._answer(self._edit(file, line))
            case ["revert", file] if file in self.broken:
                self.broken.remove(file)
                return self._answer("ok")
            case ["submit"]:
                solved = self.current is None and not self.broken
                reason = StopReason.SOLVED if solved else StopReason.UNSOLVED
                return StepResult(Message("user", "ok"), reward=float(solved), stop_reason=reason)
            case _:
                return StepResult(Message("user", "err"), valid=False)

    async def close(self) -> None:
        return None

    def expert_action(self) -> Message:
        """Return the command that repairs: undo damage first, then the current bug, then submit."""
        return Message("assistant", self._expert_command())

    def random_action(self, key: Key) -> Message:
        """Return a command drawn evenly by its verb, then by its arguments."""
        verb = ("test", "open", "edit", "revert", "submit")[integer(key, "verb", 5)]
        file = self.files[integer(key, "file", len(self.files))]
        line = self.lines[integer(key, "line", len(self.lines))]
        arguments = {"open": [file], "edit": [file, line], "revert": [file]}
        return Message("assistant", " ".join([verb, *arguments.get(verb, [])]))

    @property
    def current(self) -> Bug | None:
        return self.bugs[self.num_fixed] if self.num_fixed < len(self.bugs) else None

    def _expert_command(self) -> str:
        bug = self.current
        if self.broken:
            return f"revert {self.broken[0]}"
        if bug is None:
            return "submit" if self.passed else "test"
        if self.shown:
            return f"edit {bug.file} {bug.line}"
        return f"open {bug.file}" if self.located else "test"

    def _answer(self, text: str) -> StepResult:
        return StepResult(Message("user", text))

    def _test(self) -> str:
        if self.broken:
            return f"err broken {self.broken[0]}"
        if self.current is None:
            self.passed = True
            return "pass"
        self.located = True
        return f"fail {self.current.symptom}"

    def _open(self, file: str) -> str:
        bug = self.current
        if bug is None:
            return f"{file} clean"
        self.located = True
        if file != bug.file:
            return f"{file} clean see {bug.file}"
        self.shown = True
        return f"{file} line {bug.line}"

    def _edit(self, file: str, line: str) -> str:
        if self.broken:
            return f"err broken {self.broken[0]}"
        bug = self.current
        if bug is not None and (file, line) == (bug.file, bug.line):
            self.num_fixed += 1
            self.located = self.shown = False
        else:
            self.broken.append(file)
            self.passed = False
        return "ok"


def _sample(key: Key, purpose: str, items: Sequence[str], size: int) -> list[str]:
    """Return `size` of the items in an order that is a pure function of the key."""
    return sorted(items, key=lambda item: draw(key, f"{purpose} {item}"))[:size]
