"""Syntax errors, runtime errors and what is neither: told apart by what real programs print."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dagger_exp.errors import ConfigError
from dagger_exp.protocols import Execution
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.scaffolds.commands import Commands, action_error
from dagger_exp.scaffolds.tools import ToolScaffold
from tests.scaffolds.conftest import FolderSandbox

TESTS = {
    "a.py": "def half(x):\n    return x // 3\n",
    "broken.py": "def half(x)\n    return x\n",
    "indented.py": "def half(x):\nreturn x\n",
    "raises.py": "print('hi')\n{}['a']\n",
    "exits.py": "import sys\nsys.exit(3)\n",
    "test_a.py": "from a import half\n\n\ndef test_half():\n    assert half(4) == 2\n",
    "test_broken.py": "from broken import half\n\n\ndef test_half():\n    assert half(4) == 2\n",
    "test_logs.py": "import traceback\n\n\ndef test_log():\n    try:\n        {}['a']\n    except KeyError:\n"
    "        traceback.print_exc()\n    assert False\n",
    "unit.py": "import unittest\n\nfrom a import half\n\n\nclass T(unittest.TestCase):\n    def test_half(self):\n"
    "        self.assertEqual(half(4), 2)\n\n\nunittest.main()\n",
}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python broken.py", "syntax"),
        ("python indented.py", "syntax"),
        ("python -c 'x ='", "syntax"),
        ("python -m pytest test_broken.py", "syntax"),
        ("echo ')' > a.sh; echo '(' >> a.sh; bash a.sh", "syntax"),
        ("sh -c 'if true; then'", "syntax"),
        ("bash -c 'echo \"a'", "syntax"),
        ("python raises.py", "runtime"),
        ("python -m nothere", ""),
        ("./nothere", "runtime"),
        ("python -c 'import os; os.abort()'", "runtime"),
        ("python exits.py", ""),
        ("python -m pytest test_a.py", ""),
        ("python -m pytest -q --tb=native test_a.py", ""),
        ("python -m pytest test_logs.py", ""),
        ("python unit.py", ""),
        ("grep nothing a.py", ""),
        ("python raises.py || true", ""),
        ("cat broken.py; echo 'SyntaxError: invalid syntax'", ""),
    ],
)
def test_how_a_command_failed(command: str, expected: str, sandbox: FolderSandbox) -> None:
    async def run() -> str:
        await sandbox.write_files({f"/work/{name}": text.encode() for name, text in TESTS.items()})
        return (await Commands(timeout_s=60, max_output_chars=99, role="user").run(command, sandbox)).action_error

    assert asyncio.run(run()) == expected


@pytest.mark.parametrize("settings", [{"timeout_s": 0}, {"max_output_chars": 1}])
@pytest.mark.parametrize("scaffold", [BashScaffold, ToolScaffold])
def test_limits_that_leave_nothing_are_refused(scaffold: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"scaffold\.timeout_s must be above 0"):
        scaffold(**settings)


def test_what_was_ended_for_its_time_has_no_error() -> None:
    assert not action_error(Execution(None, "Traceback (most recent call last):\nKeyError", timed_out=True))


def test_bytes_that_a_sandbox_did_not_keep_are_told(sandbox: FolderSandbox) -> None:
    class Short(FolderSandbox):
        async def exec(self, script: str, timeout_s: float) -> Execution:
            whole = await super().exec(script, timeout_s)
            return Execution(whole.exit_code, whole.output[:2] + whole.output[-2:], num_cut_bytes=len(whole.output) - 4)

    commands = Commands(timeout_s=60, max_output_chars=99, role="tool")
    result = asyncio.run(commands.run("echo abcdef", Short(sandbox.folder)))
    assert result.observation.content == "abf\n[exit code 0; 3 bytes of the middle were not kept]"
