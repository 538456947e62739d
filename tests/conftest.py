"""What all tests share: nothing reaches out, one torch thread, and in CI a skipped test has failed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
from typing import cast

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two torch threads beside a busy core are slower than one
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell has what it starts in the background ignore Ctrl-C, and so would the runs that are interrupted here.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of what it runs
settings.load_profile("untimed")

pytest_plugins = ["tests.commands", "tests.docker.fixtures"]

IN_CI = os.environ.get("CI") == "true"
CHECK_ENDS = float(os.environ.get("DAGGER_EXP_CHECK_ENDS", "inf"))
"""After this second since 1970 no test begins: a machine may be ten times slower than usual, and a check has an end."""
NOT_RUN = "not run: this machine is too slow for the whole check"
ONE_AT_A_TIME = ("slurm", "docker")
"""Marks of tests whose daemon a machine has once: all of a mark run in one worker."""
LONG = (*ONE_AT_A_TIME, "vllm", "slow", "kill", "readme")
"""Marks of tests that run for long, the longest first: one that began late would leave the other worker idle."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long tests, and keep those that share a daemon or a module's fixture in one worker."""
    items.sort(key=lambda item: next((place for place, mark in enumerate(LONG) if item.get_closest_marker(mark)), 99))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group_of(item)))


def group_of(item: pytest.Item) -> str:
    """Return the name of the group that a test runs with; its own where it shares nothing."""
    if daemon := next((mark for mark in ONE_AT_A_TIME if item.get_closest_marker(mark)), None):
        return daemon
    fixtures = cast(pytest.Function, item)._fixtureinfo.name2fixturedefs.values()
    is_shared = any(fixture.scope == "module" for of_name in fixtures for fixture in of_name)
    return item.nodeid.partition("::")[0] if is_shared else item.nodeid


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what would begin too late; the summary counts it by file."""
    if time.time() > CHECK_ENDS:
        pytest.skip(f"{NOT_RUN}: {item.nodeid.partition('::')[0]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skipped test into a failed one in CI; only a missing GPU is an excuse there."""
    report = yield
    if item.get_closest_marker("gpu") is None:
        fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Do the same for a module that skips itself while it is collected."""
    report = yield
    fail_if_skipped(report)
    return report


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a failure out of a skip in CI; neither an expected failure (xfail) nor what is left out is one."""
    if IN_CI and report.skipped and not hasattr(report, "wasxfail") and NOT_RUN not in report.longreprtext:
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as a failure in CI: {report.longreprtext}"
