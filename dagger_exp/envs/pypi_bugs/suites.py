"""What do the tests say? A suite, run in a fresh sandbox, where nothing of an agent is but the files it repaired."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from dagger_exp.envs.pypi_bugs.run_tests import MAX_MESSAGE_CHARS, SITE
from dagger_exp.protocols import Execution, Sandboxes, SandboxSpec

RUNNER = "run_tests.py"
REPORT = "report.json"
MAX_COMPLAINT_CHARS = 2 * MAX_MESSAGE_CHARS
TIMEOUT_S = 60.0
"""For tests that wait; a loop without end is over sooner (`run_tests.CPU_S`)."""
ENVIRONMENT = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # so that a test that depends on an order fails always or never
    "PYTHONPATH": f"/work:{SITE}",
    "PYTHONUTF8": "1",
    "TZ": "UTC",
}
COMMAND = f"env -u PYTHONPATH python3 -P -S -s -B {RUNNER} --report {REPORT}"
"""No path of the agent's, and none of `site`: no `.pth` file, no `sitecustomize`."""


@dataclass(frozen=True, slots=True)
class Report:
    """Which tests passed, and the messages of those that failed; all is empty where `complaint` says why."""

    passed: frozenset[str] = frozenset()
    failed: Mapping[str, str] = field(default_factory=dict)
    complaint: str = ""


def runner_files() -> dict[str, bytes]:
    """Return what a sandbox needs beside a package."""
    return {RUNNER: files("dagger_exp.envs.pypi_bugs").joinpath(RUNNER).read_bytes()}


def in_work(content: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return files by their paths in a sandbox."""
    return {f"/work/{path}": text for path, text in content.items()}


@dataclass(frozen=True, slots=True)
class Suites:
    """Runs suites, each in a sandbox of its own.

    Args:
        sandboxes: where.
        site: the folder of this machine that holds pytest.
    """

    sandboxes: Sandboxes
    site: Path

    @property
    def spec(self) -> SandboxSpec:
        """Return what every sandbox of this world holds, whatever the task, so that they can be started ahead."""
        return SandboxSpec(mounts=((str(self.site), SITE),), environment=tuple(ENVIRONMENT.items()))

    async def run(self, content: Mapping[str, bytes], episode: str) -> Report:
        """Run the tests among some files; raises `SandboxError`."""
        sandbox = await self.sandboxes.open(self.spec, episode)
        try:
            await sandbox.write_files(in_work({**content, **runner_files()}))
            execution = await sandbox.exec(COMMAND, TIMEOUT_S)
            try:
                return _read(await sandbox.read_file(f"/work/{REPORT}"))
            except (OSError, ValueError, RecursionError):  # the code under test can write that file too
                return Report(complaint=_ended(execution))
        except OSError as error:  # what was handed in is larger than a sandbox's disk
            return Report(complaint=f"the files cannot be written: {error}")
        finally:
            await sandbox.close()


def _read(content: bytes) -> Report:
    """Return what a report says; raises `ValueError` or `RecursionError` where it is not one of `run_tests`."""
    match json.loads(content):
        case {"tests": dict(tests), "errors": dict(errors)}:
            pass
        case _:
            raise ValueError("the report lacks its parts")
    for name, said in errors.items():
        return Report(complaint=f"{name} cannot be collected: {said}"[:MAX_COMPLAINT_CHARS])
    if not all(isinstance(told, list) and [type(word) for word in told] == [str, str] for told in tests.values()):
        raise ValueError("the report tells something else of a test than its outcome and a message")
    return Report(
        passed=frozenset(test for test, (outcome, _) in tests.items() if outcome == "passed"),
        failed={test: message for test, (outcome, message) in tests.items() if outcome == "failed"},
    )


def _ended(execution: Execution) -> str:
    if execution.timed_out:
        return f"the tests took more than {TIMEOUT_S:g} s"
    said = execution.output.strip().splitlines()[-1:] or ["they said nothing"]
    return f"the tests ended with exit code {execution.exit_code}: {said[0]}"[:MAX_COMPLAINT_CHARS]
