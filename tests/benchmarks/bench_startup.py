"""How long does a person wait for a run to begin?

    python tests/benchmarks/bench_startup.py        # each command five times; the fastest counts

Wanted on a quiet core: the first line within 1 s, round 0 within 5 s, `--help` within 1.5 s. The last row is what
no run can be faster than: the bare import of the three libraries. A busy machine shows in the wall time, hardly in the
CPU time. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

import psutil

TRAIN = str(Path(sys.executable).with_name("dagger-train"))
BARE = [sys.executable, "-c", "import torch, transformers, lightning; print('imported')"]
Seconds = tuple[float, float]
"""Wall and CPU time."""


def main() -> None:
    """Time each command and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        run = [TRAIN, "debug=default", f"paths.output_folder={folder}"]
        commands = {
            "first line": (run, "loading"),
            "round 0": (run, "round 1/"),
            "--help": ([TRAIN, "--help"], "dagger-train:"),
            "bare import": (BARE, "imported"),
        }
        rows = {name: fastest(*how, repeats) for name, how in commands.items()}
    floor = rows["bare import"]
    print(f"{'':12} {'wall s':>7} {'CPU s':>7} {'CPU / bare import':>18}")
    for name, (wall, cpu) in rows.items():
        print(f"{name:12} {wall:7.2f} {cpu:7.2f} {cpu / floor[1]:18.2f}")
    print(json.dumps({name: {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)} for name, (wall, cpu) in rows.items()}))


def fastest(command: list[str], mark: str, repeats: int) -> Seconds:
    """Return the smallest wall and CPU time of several starts."""
    times = [until(command, mark) for _ in range(repeats)]
    return min(wall for wall, _ in times), min(cpu for _, cpu in times)


def until(command: list[str], mark: str) -> Seconds:
    """Return the time until a command prints a line with this mark."""
    began = monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if mark in line:
                spent = psutil.Process(process.pid).cpu_times()
                seen = monotonic() - began, spent.user + spent.system
                process.kill()
                return seen
    raise AssertionError(f"{command} never printed {mark!r}")


if __name__ == "__main__":
    main()
