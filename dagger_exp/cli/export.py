"""dagger-export: the episodes and labels of a store as rows of messages, for TRL and other trainers.

dagger-export outputs/runs/FOLDER --out labels.jsonl                      a row per label, as TRL's SFTTrainer takes it
dagger-export outputs/runs/FOLDER --out labels.jsonl --rounds 1 2         of these rounds
dagger-export outputs/runs/FOLDER --out fixes.jsonl --only labels         where the label is not what was executed
dagger-export outputs/runs/FOLDER --out episodes.jsonl --only executed    a row per episode, with weights

What was shown is taken apart into its messages by the tokenizer in the run's student/ folder; where there is none, each
observation is one message of the user.

A row of a label has `messages` (each with a `weight` of 0 or 1) and the same as `prompt` and `completion`. A row of an
episode has `messages` alone: it is for trainers that read weights, and for demonstrations=messages.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from dagger_exp.analysis.export import KINDS, exported_rows
from dagger_exp.analysis.speakers import Speakers
from dagger_exp.cli.complaints import complain, warn
from dagger_exp.errors import DaggerError, UserError
from dagger_exp.store.store import Store
from dagger_exp.store.view import StoreView


def main() -> None:
    """Entry point of the console script."""
    options = _options()
    try:
        view = opened(options.path)
        speakers = Speakers(decoder(view.folder.parent / "student"))
        rounds = closed(view, options.rounds)
        num_rows = write_rows(options.out, exported_rows(view, rounds, options.only, speakers))
    except (DaggerError, OSError) as error:
        sys.exit(complain(error))
    if speakers.num_unknown:
        warn([f"{speakers.num_unknown} observations are one message of the user each: no tokens tell who said what."])
    print(f"{options.out}: {num_rows} rows")


def opened(path: Path) -> StoreView:
    """Return the store of a run folder, or of its `rounds/`.

    Raises:
        UserError: there is none.
        StoreError: it is damaged, or of another schema version.
    """
    folder = path / "rounds" if (path / "rounds").is_dir() else path
    if not (folder / "store.json").is_file():
        raise UserError(f"{path} is no store: give a run folder, or its rounds/ folder.")
    return Store.open(folder)


def closed(view: StoreView, wanted: Sequence[int] | None) -> Sequence[int]:
    """Return the rounds that are wanted, all that are closed where None is.

    Raises:
        UserError: one of them is not closed.
    """
    known = view.rounds()
    for index in wanted or ():
        if index not in known:
            raise UserError(f"--rounds {index} is no closed round: choose of {', '.join(map(str, known)) or 'none'}.")
    return wanted or known


def decoder(student: Path) -> Callable[[Sequence[int]], str] | None:
    """Return what turns token ids into text, special tokens too; None where a run has saved no student.

    Raises:
        UserError: the tokenizer in that folder cannot be read.
    """
    if not (student / "tokenizer_config.json").is_file():
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(student))
    except Exception as error:  # whatever tokenizers, transformers or the JSON parser make of a damaged file
        raise UserError(
            f"the tokenizer in {student} cannot be read ({' '.join(str(error).split())}): restore the folder from a "
            "copy, or move it away, and each observation is one message of the user."
        ) from error
    return partial(tokenizer.decode, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def write_rows(out: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows as JSON lines, all or none of them, and return how many.

    Raises:
        UserError: there are none, or the file cannot be written.
    """
    aside, count = Path(f"{out}.tmp"), 0
    try:
        with aside.open("w", encoding="utf-8") as file:
            for count, row in enumerate(rows, start=1):  # noqa: B007 - the last one is how many
                file.write(f"{json.dumps(row)}\n")
        if not count:
            raise UserError("there is nothing to export: choose other --rounds, or another --only.")
        aside.replace(out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): give another file with --out.") from error
    finally:
        with suppress(OSError):
            aside.unlink()
    return count


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="dagger-export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a run folder, or its rounds/ folder")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON lines")
    parser.add_argument(
        "--rounds", type=int, nargs="+", metavar="N", help="these rounds (default: all that are closed)"
    )
    parser.add_argument("--only", choices=KINDS, help="labels that differ from what was executed, or whole episodes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
