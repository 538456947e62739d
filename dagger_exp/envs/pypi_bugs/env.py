"""One episode of one task: an agent in a sandbox with a package that has a bug, and tests that nobody can edit."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dagger_exp.envs.pypi_bugs.hiding import function_of, statement, visible_files
from dagger_exp.envs.pypi_bugs.packages import Project
from dagger_exp.envs.pypi_bugs.suites import RUNNER, Suites, in_work, runner_files
from dagger_exp.envs.pypi_bugs.tampering import tampering
from dagger_exp.envs.pypi_bugs.teacher import COPY, Bug, Seen, Teacher
from dagger_exp.errors import EnvError, SandboxError
from dagger_exp.protocols import Sandbox, Scaffold
from dagger_exp.scaffolds.session import ScaffoldSession
from dagger_exp.seeding import integer
from dagger_exp.types import Key, Message, StepResult, StopReason, Task, ToolCall

SURVEY = """
import hashlib, json, os, stat, sys
def digest(path):
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return hashlib.sha256(file.read(1 << 24)).hexdigest()
    except OSError:
        pass
print(json.dumps({path: digest(path) for path in sys.argv[1:]}))
"""
SURVEY_TIMEOUT_S = 60.0


class PypiBugsEnv:
    """Plays one task. What is graded are the package's own Python files alone, in a fresh sandbox; see `tampering`.

    The reward is the share of the originally failing tests that pass, hidden ones included, and 0 where a test that
    passed before does not pass now; the episode is solved where it is 1.

    Args:
        task: of the world.
        project: its package, without the bug.
        passing: the tests that pass without the bug.
        suites: where tests run.
        scaffold: of the run.
    """

    def __init__(
        self, task: Task, *, project: Project, passing: Sequence[str], suites: Suites, scaffold: Scaffold
    ) -> None:
        data = task.data
        self._task, self._project, self._passing = task, project, frozenset(passing)
        self._suites, self._scaffold = suites, scaffold
        right = project.files[data["file"]].decode().split("\n")
        right[data["line"] - 1] = data["buggy_line"]
        buggy = "\n".join(right)
        hidden = frozenset(map(function_of, data["hidden"]))
        self._content = {**visible_files(project, hidden), data["file"]: buggy.encode()}
        bug = Bug(data["file"], data["line"], data["right_line"], data["buggy_line"], buggy)
        self._teacher = Teacher(bug, self._content, project, edits_by_tool=bool(scaffold.tools))
        self._sandbox: Sandbox | None = None
        self._seen = Seen({})

    async def reset(self) -> Sequence[Message]:
        """Begin. Raises `SandboxError`."""
        if self._sandbox is not None:
            raise EnvError(f"the env of {self._task.id} was used before; make a fresh one")
        self._sandbox = await self._suites.sandboxes.open(self._suites.spec, self._task.id)
        self._session = ScaffoldSession(self._scaffold, self._sandbox)
        sources = [path for path in self._content if path.split("/")[0] in self._project.folders]
        copy = {f"{COPY}/{path}": self._content[path] for path in sources}
        try:
            await self._sandbox.write_files(in_work({**self._content, **copy, **runner_files()}))
        except OSError as error:
            raise EnvError(f"the files of {self._task.id} cannot be written; raise sandbox.limits.disk_mib.") from error
        self._seen = Seen(await self._digests(self._sandbox))
        system = [Message("system", self._scaffold.instructions)] if self._scaffold.instructions else []
        return [*system, Message("user", statement(self._project, self._task.data["visible"]))]

    async def step(self, action: Message) -> StepResult:
        """Execute an action, and grade where it submits. Raises `SandboxError`."""
        if self._sandbox is None:
            raise EnvError(f"a step in {self._task.id} before its reset")
        result, is_submitted = await self._session.step(action)
        if is_submitted:
            return await self._graded(result, self._sandbox)
        self._note(action, await self._digests(self._sandbox))
        return result

    async def close(self) -> None:
        """Remove the sandbox."""
        if self._sandbox is not None:
            await self._sandbox.close()

    def expert_action(self) -> Message:
        """Return what somebody does who knows the bug."""
        return self._scaffold.write(self._teacher.action(self._seen))

    def random_action(self, key: Key) -> Message:
        """Return a command that looks or tests, drawn evenly."""
        modules = self._project.modules
        file = shlex.quote(modules[integer(key, "file", len(modules))])
        commands = ("ls", f"ls {self._project.folders[0]}", f"head -5 {file}", f"wc -l {file}", f"python3 {RUNNER}")
        command = commands[integer(key, "command", len(commands))]
        return self._scaffold.write(ToolCall("execute_bash", json.dumps({"command": command})))

    def _note(self, action: Message, digests: Mapping[str, str]) -> None:
        """Keep what the teacher's next answer depends on."""
        said = "\n".join([action.content, *(call.arguments for call in action.tool_calls)])
        has_tested, has_looked = RUNNER in said or "pytest" in said, self._task.data["file"] in said
        if digests == self._seen.digests:
            has_tested, has_looked = has_tested or self._seen.has_tested, has_looked or self._seen.has_looked
        else:
            has_looked = False
        self._seen = Seen(digests, has_tested, has_looked)

    async def _digests(self, sandbox: Sandbox) -> Mapping[str, str]:
        """Return what tells the contents of the sources and of their copy apart; only regular files have it.

        Raises:
            SandboxError: the sandbox runs no Python any more.
        """
        paths = [*self._project.modules, *(f"{COPY}/{path}" for path in self._project.modules)]
        command = shlex.join(["python3", "-I", "-S", "-c", SURVEY, *paths])
        execution = await sandbox.exec(command, SURVEY_TIMEOUT_S)
        *_, last = execution.output.splitlines() or [""]  # a shell may have warned before
        try:
            return json.loads(last)
        except (ValueError, RecursionError) as error:
            raise SandboxError(f"the sandbox of {self._task.id} cannot be looked into: {last[:200]}") from error

    async def _graded(self, result: StepResult, sandbox: Sandbox) -> StepResult:
        """Run the whole suite on what the agent leaves, and nothing else of the agent's."""
        submitted: dict[str, bytes] = {}
        for path in self._project.modules:
            try:
                submitted[path] = await sandbox.read_file(f"/work/{path}")
            except OSError:
                submitted[path] = b""
            reached = tampering(submitted[path], self._project.files[path])
            if reached:
                said = f"Refused: {path} reaches for what no repair needs ({reached})."
                return replace(result, observation=Message("user", said), stop_reason=StopReason.UNSOLVED)
        await sandbox.close()  # before another one is asked for: where all are in use, each would wait for the others
        report = await self._suites.run({**self._project.files, **submitted}, f"{self._task.id}-graded")
        failing = {*self._task.data["visible"], *self._task.data["hidden"]}
        broken = sorted(self._passing - failing - report.passed)
        reward = 0.0 if broken else len(failing & report.passed) / len(failing)
        said = f"{len(failing & report.passed)} of {len(failing)} tests are repaired, and {len(broken)} are broken"
        why = report.complaint or ", ".join(broken[:1])
        reason = StopReason.SOLVED if reward == 1.0 else StopReason.UNSOLVED
        told = Message("user", f"{said}{f': {why}' if why else ''}.")
        return replace(result, observation=told, reward=reward, stop_reason=reason)
