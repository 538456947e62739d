"""What does W&B know of a run? Runs of a server, and of the folders that offline runs leave.

W&B holds the figures of a run and its config, not its episodes: such runs are in every curve and in no paired test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dagger_exp.analysis.load import Row, Run
from dagger_exp.errors import StoreError

PREFIX = "wandb:"
TIMEOUT_S = 20
LOGIN = "log in with `wandb login`, or give run folders instead"


def load_server(address: str) -> list[Run]:
    """Return the runs of a project on a W&B server, or of one group in it.

    Args:
        address: `wandb:entity/project` or `wandb:entity/project/group`.

    Raises:
        StoreError: the address is none, W&B cannot be reached or does not let us in, or there is no such run.
    """
    parts = address.removeprefix(PREFIX).split("/")
    if len(parts) not in {2, 3} or not all(parts):
        raise StoreError(f"{address} is no address of runs on W&B: write wandb:entity/project or .../project/group.")
    import wandb  # takes seconds, and run folders need none of it
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        wandb.setup(wandb.Settings(silent=True))
        found = wandb.Api(timeout=TIMEOUT_S).runs("/".join(parts[:2]), filters={"group": parts[2]} if parts[2:] else {})
        runs = [
            _run(
                name=run.name,
                place=f"{PREFIX}{'/'.join(run.path)}",
                state=run.state,
                config=run.config,
                history=run.scan_history(),
            )
            for run in found
        ]
    except (wandb.Error, WandbApiFailedError, OSError, ValueError) as error:
        raise StoreError(f"{address} cannot be read from W&B ({first_sentence(error)}): {LOGIN}.") from error
    if not runs:
        raise StoreError(f"{address} has no runs on W&B: look at its name there.")
    return runs


def offline_folders(path: Path) -> list[Path]:
    """Return the folders of W&B offline runs that a path is or holds, oldest first; none of a run folder."""
    if any(path.glob("*.wandb")):
        return [path]
    return sorted(folder for folder in path.glob("offline-run-*") if any(folder.glob("*.wandb")))


def load_offline(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs of W&B offline folders, those of one id as one run, and a sentence for each unreadable folder."""
    by_id: defaultdict[str, list[tuple[Path, list[dict[str, Any]]]]] = defaultdict(list)
    complaints: list[str] = []
    for folder in folders:
        try:
            records = list(_records(folder))
            begun = next(record["run"] for record in records if record.get("type") == "run")
            by_id[begun["run_id"]].append((folder, records))
        except StopIteration:
            complaints.append(f"{folder} holds no W&B run: leave it out.")
        except StoreError as error:
            complaints.append(str(error))
    return [_from_records(parts) for parts in by_id.values()], complaints


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the transaction log of a run, whole records only: the last one may be half written."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and line.endswith("}")]
    if not records:
        raise StoreError(f"{folder} cannot be read ({first_sentence(done.stderr)}): copy it again, or leave it out.")
    yield from records


def _from_records(parts: list[tuple[Path, list[dict[str, Any]]]]) -> Run:
    """Make one run of the folders that it wrote, one for each time it was started."""
    folder, last = parts[-1]
    begun = [record["run"] for _, records in parts for record in records if record.get("type") == "run"]
    history = (record["history"]["item"] for _, records in parts for record in records if record["type"] == "history")
    ends = [record["exit"].get("exit_code", 0) for record in last if record["type"] == "exit"]
    run = _run(
        name=begun[-1].get("display_name") or begun[-1]["run_id"],
        place=str(folder),
        state=("failed" if ends[-1] else "finished") if ends else "interrupted",
        config={key: value for run in begun for key, value in run.get("config", {}).get("update", {}).items()},
        history=history,
    )
    return replace(run, error=f"exit code {ends[-1]}") if run.state == "failed" else run


def _run(*, config: Mapping[str, Any], history: Iterable[Mapping[str, Any]], **about: Any) -> Run:
    manifest = config.get("manifest", {})
    known = {"choices": manifest.get("choices") or {}, "commit": manifest.get("commit") or ""}
    return Run(config=config, rows=rows_by_round(history), error="", **about, **known)


def rows_by_round(history: Iterable[Mapping[str, Any]]) -> tuple[Row, ...]:
    """Return a row per closed round out of what was logged; a round that a resumed run logged again counts once."""
    rounds: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for item in history:
        if item.get("round") is not None and item.get("round/num_steps") is not None:
            figures = {key: value for key, value in item.items() if isinstance(value, int | float)}
            rounds[int(item["round"])] = {key: value for key, value in figures.items() if not key.startswith("_")}
    return tuple(row for _, row in sorted(rounds.items()))


def first_sentence(error: object) -> str:
    lines = str(error).strip().splitlines() or ["nothing was said"]
    return lines[-1].split(". ")[0].rstrip(".")
