"""How is a mistake said? In one sentence, on stderr; the same way by every command."""

from __future__ import annotations

import sys
from collections.abc import Iterable


def complain(error: Exception) -> int:
    """Print an error as one sentence and return the exit code."""
    text = str(error)
    if isinstance(error, BrokenPipeError):
        text = "whoever read the output has gone; send it to a file instead."
    elif isinstance(error, OSError) and error.strerror:
        place = error.filename or "the output folder"
        text = f"{place} cannot be written ({error.strerror}); free space, or set another paths.output_folder."
    print(f"error: {text}", file=sys.stderr)
    return 2


def warn(sentences: Iterable[str]) -> None:
    """Print what is left out or half there, a line each; the rest goes on."""
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)
