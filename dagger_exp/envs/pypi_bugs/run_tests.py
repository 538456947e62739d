"""Runs the tests in /work, and says shortly what came of them: python3 run_tests.py [FILE_OR_TEST ...].

It is written into the sandboxes of this world, where it must do with the standard library and with pytest, which lies
at `SITE`. With `--report FILE` it writes what came of every test there instead.
"""

from __future__ import annotations

import json
import os
import re
import resource
import site
import sys
from pathlib import Path
from typing import Any

SITE = "/opt/pypi_bugs"
CPU_S = 10
"""Processor time that a suite may take: a loop without end is over then, however busy the machine is."""
NOT_ITS_OWN = ("", "site-packages", "dist-packages")
MAX_SHOWN = 5
MAX_MESSAGE_CHARS = 160
OPTIONS = ["-c", os.devnull, "--rootdir=.", "-p", "no:cacheprovider", "-p", "no:terminal", "-W", "ignore"]


class Outcomes:
    """What came of each test, as pytest reports it.

    `tests` has an outcome and the first line of a message by test; `errors` has why files could not be read.
    """

    def __init__(self) -> None:
        self.tests: dict[str, tuple[str, str]] = {}
        self.errors: dict[str, str] = {}

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.errors[report.nodeid] = _message(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.tests.get(report.nodeid, ("",))[0] != "failed":
            self.tests[report.nodeid] = ("failed", _message(report))
        elif report.when == "call" or report.skipped:
            self.tests.setdefault(report.nodeid, (report.outcome, ""))


def _message(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = [line for line in str(crash.message if crash else report.longrepr).splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("E ")] or lines or [""]
    told = said[0 if crash else -1].removeprefix("E ").strip()
    return re.sub(r" at 0x[0-9a-f]+", "", told)[:MAX_MESSAGE_CHARS]  # an address is another one each time


def _show(outcomes: Outcomes) -> None:
    failed = {test: message for test, (outcome, message) in outcomes.tests.items() if outcome == "failed"}
    for name, said in [*outcomes.errors.items(), *failed.items()][:MAX_SHOWN]:
        print(f"{name}: {said}")  # noqa: T201 - it is a program
    num_passed = sum(outcome == "passed" for outcome, _ in outcomes.tests.values())
    errors = f"{len(outcomes.errors)} errors, " if outcomes.errors else ""
    print(f"{errors}{len(failed)} failed, {num_passed} passed")  # noqa: T201 - it is a program


def main(words: list[str]) -> int:
    """Run the suite; returns 1 where a test failed."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    # The interpreter's own modules first, so that no file of /work takes the place of one; no other packages.
    own = [path for path in sys.path if Path(path).name not in NOT_ITS_OWN and path not in ("/work", SITE)]
    sys.path[:] = [*own, SITE, "/work"]
    site.setquit()  # of what `-S` leaves out, tests may look at these
    site.sethelper()
    import pytest

    report = words[1] if words[:1] == ["--report"] else None
    outcomes = Outcomes()
    pytest.main([*OPTIONS, *(words[2:] if report else words)], plugins=[outcomes])
    if report:
        Path(report).write_text(json.dumps({"tests": outcomes.tests, "errors": outcomes.errors}))
    else:
        _show(outcomes)
    return int(bool(outcomes.errors) or any(outcome == "failed" for outcome, _ in outcomes.tests.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
