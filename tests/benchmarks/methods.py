"""Methods against each other at equal labels: `dagger-train` once per method and seed, and a table of what came out.

    python tests/benchmarks/methods.py                                      repo_repair, 6 seeds, 25 minutes
    python tests/benchmarks/methods.py --seeds 3 --methods dagger sft -- experiment=textworld

`sft_equal_tokens` is `sft` with its optimizer steps scaled so that it computes as many tokens as `dagger` did. A run
that is finished in the output folder is not run again. Intervals are 95 % t-intervals over seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean

from scipy.stats import sem, t

METHODS = ("sft", "sft_equal_tokens", "dagger_switch", "on_policy_labels", "dagger")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--workers", type=int, default=max(1, os.cpu_count() or 1))
    parser.add_argument("--folder", type=Path, help="default: one for each set of overrides")
    parser.add_argument("overrides", nargs="*", help="of dagger-train, after --")
    args = parser.parse_args()
    args.folder = args.folder or Path(
        "outputs/benchmarks", re.sub(r"[^a-z0-9.]+", "-", "-".join(["methods", *args.overrides]).lower())
    )
    first = [method for method in args.methods if method != "sft_equal_tokens"]
    play(args.folder, first, range(args.seeds), args.overrides, args.workers)
    if "sft_equal_tokens" in args.methods:
        steps = equal_token_steps(args.folder, args.seeds)
        play(
            args.folder,
            ["sft_equal_tokens"],
            range(args.seeds),
            [*args.overrides, f"rounds.steps={steps}"],
            args.workers,
        )
    print_table(args.folder, args.methods, args.seeds)


def play(folder: Path, methods: Sequence[str], seeds: range, overrides: Sequence[str], workers: int) -> None:
    """Run what is not finished, seeds first, so that an interrupted benchmark has whole seeds."""
    jobs = [(method, seed) for seed in seeds for method in methods]
    with ThreadPoolExecutor(workers) as pool:
        for (method, seed), code in zip(
            jobs, pool.map(lambda job: run(folder, job[0], job[1], overrides), jobs), strict=True
        ):
            print(f"{method} seed {seed}: {'ok' if code == 0 else f'exit code {code}'}", flush=True)


def run(folder: Path, method: str, seed: int, overrides: Sequence[str]) -> int:
    target = folder / method / f"seed_{seed}"
    status = target / "status.json"
    if status.exists() and json.loads(status.read_text())["state"] == "finished":
        return 0
    choice = method.removesuffix("_equal_tokens")
    options = [f"method={choice}", f"seed={seed}", "logger=csv", f"hydra.run.dir={target}"]
    command = [sys.executable, "-m", "dagger_exp.cli.train", *overrides, *options]
    target.mkdir(parents=True, exist_ok=True)
    with (target / "stdout.txt").open("w") as out:
        return subprocess.run(command, stdout=out, stderr=out, check=False).returncode


def equal_token_steps(folder: Path, seeds: int) -> list[int]:
    """Return the steps per round with which SFT computes as many tokens as DAgger, over the seeds that were run."""
    dagger, sft = rows_of(folder, "dagger", seeds), rows_of(folder, "sft", seeds)
    num_rounds = len(sft[0])
    return [
        round(
            sft[0][r]["round/num_steps"]
            * fmean(rows[r]["round/num_tokens"] for rows in dagger)
            / fmean(rows[r]["round/num_tokens"] for rows in sft)
        )
        for r in range(num_rounds)
    ]


def rows_of(folder: Path, method: str, seeds: int) -> list[list[dict[str, float]]]:
    """Return the rows of the finished runs of a method."""
    paths = [folder / method / f"seed_{seed}" / "summary.json" for seed in range(seeds)]
    return [json.loads(path.read_text())["rounds"] for path in paths if path.exists()]


def print_table(folder: Path, methods: Sequence[str], seeds: int) -> None:
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, commit {commit()}")
    print("| method | success | 95 % over seeds | seeds | labels | tokens computed | each seed |")
    print("|---|---|---|---|---|---|---|")
    for method in methods:
        runs = rows_of(folder, method, seeds)
        if not runs:
            sys.exit(f"no run of {method} has finished; {folder / method / 'seed_0' / 'stdout.txt'} says why.")
        success = [rows[-1]["eval/success_rate"] for rows in runs]
        half = float(t.ppf(0.975, len(runs) - 1) * sem(success)) if len(runs) > 1 else float("nan")
        labels = fmean(sum(row["rollout/num_labels"] for row in rows) for rows in runs)
        tokens = fmean(sum(row["round/num_tokens"] for row in rows) for rows in runs)
        mean, each = fmean(success), " ".join(f"{value:.3f}" for value in success)
        interval = f"{max(0.0, mean - half):.3f} to {min(1.0, mean + half):.3f}"
        print(f"| {method} | {mean:.3f} | {interval} | {len(runs)} | {labels:.0f} | {tokens:.0f} | {each} |")


def commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
