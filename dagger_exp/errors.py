"""What may fail, typed by the boundary that the failure crossed.

DaggerError
├── UserError         the user's mistake: one sentence with the mend, exit code 2, never a traceback
│   ├── ConfigError   the choices of a run contradict each other or do not exist
│   └── StoreError    a store on disk is not the one that was asked for
├── DataError         the collected episodes cannot be trained on
├── PolicyError       a policy gave no usable response
│   ├── EngineError   the engine behind it failed
│   └── ContextError  the conversation is longer than the model behind it can read
├── EnvError          an environment failed (not: the agent failed in it)
│   └── SandboxError  the sandbox in which its commands run is gone or cannot be had
├── MalformedAction   a message makes no call that its scaffold understands; the model's doing, answered by a turn
├── LabelError        the teacher's answer cannot be used: its turn stays without a label
└── TeacherError      the teacher cannot be asked: its server failed
    └── BudgetError   the teacher's budget is spent
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


class DaggerError(Exception):
    """Root of all errors that this package raises on purpose."""


class UserError(DaggerError):
    """A mistake that the user can mend; the message says how, in one sentence."""


class ConfigError(UserError):
    """The choices of a run contradict each other, do not exist, or do not fit their constructors."""


class StoreError(UserError):
    """A store is of another run, of another schema version, damaged, or not where it was said to be."""


class DataError(DaggerError):
    """The episodes hold nothing to train on, or an example breaks its own invariants."""


class PolicyError(DaggerError):
    """A policy gave no usable response."""


class EngineError(PolicyError):
    """The engine that generates tokens failed."""


class DriftError(EngineError):
    """A server does not compute what the trainer computes."""


class ContextError(PolicyError):
    """The conversation is longer than the model can read: a student's own doing, as at its own limit."""


class EnvError(DaggerError):
    """An environment failed; the agent in it did nothing wrong."""


class SandboxError(EnvError):
    """A sandbox could not be started, or is gone; what a command does inside one never raises."""


class MalformedAction(DaggerError):  # noqa: N818  it is an observation for the model, not a failure
    """A message makes no call that its scaffold understands; the text tells the model what to mend."""


class LabelError(DaggerError):
    """The teacher's answer to a visited state is empty, cut, too long, or not writable in the student's template."""


class TeacherError(DaggerError):
    """The teacher cannot be asked, because its server failed."""


class BudgetError(TeacherError):
    """The teacher's budget is spent."""


@contextmanager
def boundary(error_type: type[DaggerError], what: str) -> Iterator[None]:
    """Turn any exception of other people's code into an error of its boundary; our own errors pass through.

    The message keeps the traceback below its first line.

    Args:
        error_type: the error to raise.
        what: the part that was called, as the subject of the sentence.
    """
    try:
        yield
    except DaggerError:
        raise
    except Exception as error:
        trace = "".join(traceback.format_exception(error)).rstrip()
        raise error_type(f"{what} raised {type(error).__name__}: {error}\n{trace}") from error


def first_line(text: object) -> str:
    """Return the first line of a message, without the traceback that `boundary` adds."""
    return str(text).partition("\n")[0]


def check_at_least(low: int, group: str, **values: float | None) -> None:
    """Refuse what is lower, endless or not a number; None is left alone.

    Args:
        low: the lowest that may be.
        group: below which the values stand in the config.
        values: by their names there.

    Raises:
        ConfigError: names the first that is none.
    """
    for name, value in values.items():
        if value is not None and not low <= value < math.inf:
            raise ConfigError(f"{group}.{name} is {value}; it must be at least {low}.")
