"""What does a command do, and how did it fail? A script run in a sandbox, as an observation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dagger_exp.errors import ConfigError
from dagger_exp.protocols import Execution, Sandbox
from dagger_exp.scaffolds.observations import cut_middle
from dagger_exp.types import Message, StepResult

SYNTAX = re.compile(
    r"^(?:E[ ]+)?(?:SyntaxError|IndentationError|TabError): "  # Python's, also where pytest could not import a file
    r"|^[^\n:]+: (?:-c: )?(?:line )?\d+: (?:[Ss]yntax error|unexpected EOF while looking for matching)",  # a shell's
    re.MULTILINE,
)
TRACEBACK = re.compile(r"^Traceback \(most recent call last\):$", re.MULTILINE)
TEST_REPORT = re.compile(
    r"^=+ .{0,200}\b(?:failed|passed|errors?)\b.{0,200} =+$|^FAILED \((?:failures|errors)=|^\d+ failed\b", re.MULTILINE
)
"""The last line of pytest's report, with or without `-q`, and of unittest's."""
FATAL_EXIT_CODES = (126, 127, 134, 137, 139)
"""A command that cannot be executed or is not found; aborted, killed (as for its memory), or a broken memory access."""


@dataclass(frozen=True, kw_only=True)
class Commands:
    """Runs commands.

    Args:
        timeout_s: that one may take.
        max_output_chars: kept of its output, half from each end.
        role: of the message that tells what came of it.

    Raises:
        ConfigError: a number is out of range.
    """

    timeout_s: float
    max_output_chars: int
    role: str

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.max_output_chars < 2:
            raise ConfigError("scaffold.timeout_s must be above 0, and scaffold.max_output_chars at least 2.")

    async def run(self, command: str, sandbox: Sandbox) -> StepResult:
        """Run a command; raises `SandboxError`."""
        execution = await sandbox.exec(command, self.timeout_s)
        output, num_cut = cut_middle(execution.output.strip("\n"), self.max_output_chars)
        return StepResult(
            Message(self.role, self._told(execution, output)),
            action_error=action_error(execution),
            failed=execution.exit_code != 0,
            num_cut_chars=num_cut + execution.num_cut_bytes,
        )

    def _told(self, execution: Execution, output: str) -> str:
        """Return what is shown of a command's output, and how it ended."""
        end = f"exit code {execution.exit_code}"
        if execution.timed_out:
            end = f"ended after {self.timeout_s:g} s, which is all that a command may take"
        lost = f"; {execution.num_cut_bytes} bytes of the middle were not kept" if execution.num_cut_bytes else ""
        return f"{output}\n[{end}{lost}]".lstrip("\n")


def action_error(execution: Execution) -> str:
    """Return how a command failed: `syntax`, `runtime`, or nothing of both.

    `syntax`: a shell or Python could not read what was written, a file that a test imports included. `runtime`: an
    exception of Python that nobody caught, a command that does not exist or cannot be executed, a program that a signal
    ended. Only a command that failed counts; a test that fails, one that is ended for its time and a program that ends
    with another exit code by itself are neither.
    """
    if execution.timed_out or execution.exit_code == 0:
        return ""
    if SYNTAX.search(execution.output):
        return "syntax"
    is_fatal = execution.exit_code in FATAL_EXIT_CODES
    is_uncaught = bool(TRACEBACK.search(execution.output)) and not TEST_REPORT.search(execution.output)
    return "runtime" if is_fatal or is_uncaught else ""
