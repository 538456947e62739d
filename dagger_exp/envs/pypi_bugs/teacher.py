"""What would somebody do who knows the bug? Run the tests, look at the place, edit the line, run the tests, submit.

The answer is a function of what the env has seen in the sandbox, so it is there for every state: files that are neither
as they were nor repaired are put back first, from a copy that lies in the sandbox, or whole where that is damaged too.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from dagger_exp.envs.pypi_bugs.packages import Project
from dagger_exp.envs.pypi_bugs.suites import RUNNER
from dagger_exp.types import ToolCall

COPY = ".original"
"""The folder in `/work` with a copy of the sources, the bug included."""
CONTEXT_LINES = 3


@dataclass(frozen=True, slots=True)
class Bug:
    """The bug of a task, and the text of its file with it."""

    file: str
    line: int
    right_line: str
    buggy_line: str
    buggy_text: str

    @property
    def right_text(self) -> str:
        """Return the file without the bug."""
        lines = self.buggy_text.split("\n")
        lines[self.line - 1] = self.right_line
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Seen:
    """The state of a sandbox, as far as the teacher's answer depends on it.

    Args:
        digests: of the regular files that are there, of the sources and of their copy.
        has_tested: whether the tests ran since the sources changed.
        has_looked: whether the file of the bug was shown since then.
    """

    digests: Mapping[str, str]
    has_tested: bool = False
    has_looked: bool = False


def digest(content: bytes) -> str:
    """Return what tells contents apart."""
    return sha256(content).hexdigest()


class Teacher:
    """Knows the bug of one task.

    Args:
        bug: of the task.
        content: of the sandbox at the beginning.
        project: the package.
        edits_by_tool: whether files are shown and edited by an editor's calls, not by commands.
    """

    def __init__(self, bug: Bug, content: Mapping[str, bytes], project: Project, edits_by_tool: bool) -> None:
        self.bug, self.project, self.edits_by_tool = bug, project, edits_by_tool
        self.content = {path: content[path] for path in project.modules}
        self._begun = {path: digest(text) for path, text in self.content.items()}
        self._right = digest(bug.right_text.encode())

    def action(self, seen: Seen) -> ToolCall:
        """Return what to do now."""
        damaged = [path for path in self._begun if not self._is_known(path, seen)]
        if damaged:
            return self._restore(damaged[0], seen)
        if seen.digests[self.bug.file] == self._right:
            return self._submit() if seen.has_tested else _run(f"python3 {RUNNER}")
        if not seen.has_tested:
            return _run(f"python3 {RUNNER}")
        return self._edit() if seen.has_looked else self._look()

    def _is_known(self, path: str, seen: Seen) -> bool:
        known = (self._begun[path], self._right) if path == self.bug.file else (self._begun[path],)
        return seen.digests.get(path) in known

    def _restore(self, path: str, seen: Seen) -> ToolCall:
        """Put everything back, or, where the copy is no longer what it was, one file."""
        if all(seen.digests.get(f"{COPY}/{module}") == begun for module, begun in self._begun.items()):
            sources = shlex.join(self.project.folders)
            return _run(f"chmod -R u+rwX .; rm -rf {sources}; cp -r {COPY}/. .")
        text = self.bug.right_text if path == self.bug.file else self.content[path].decode()
        end = next(word for word in ("EOF", "END", "END_OF_FILE") if word not in text.split("\n"))
        name, folder = shlex.quote(path), PurePosixPath(path).parent
        way = f"[ -d {folder} ] || rm -f {folder}; mkdir -p {folder}; rm -rf {name}"
        return _run(f"{way}; cat > {name} <<'{end}'\n{text}{end}")

    def _look(self) -> ToolCall:
        last = self.bug.buggy_text.count("\n")
        first, last = max(1, self.bug.line - CONTEXT_LINES), min(last, self.bug.line + CONTEXT_LINES)
        if self.edits_by_tool:
            return _editor("view", self.bug.file, view_range=[first, last])
        return _run(f"sed -n {first},{last}p {shlex.quote(self.bug.file)}")

    def _edit(self) -> ToolCall:
        if self.edits_by_tool:
            old, new = self._passage()
            return _editor("str_replace", self.bug.file, old_str=old, new_str=new)
        change = f"{self.bug.line}c\\" + self.bug.right_line.replace("\\", "\\\\")
        return _run(f"sed -i {shlex.quote(change)} {shlex.quote(self.bug.file)}")

    def _passage(self) -> tuple[str, str]:
        """Return the buggy line, with as many lines before it as make it the only such place, and what it should be."""
        lines = self.bug.buggy_text.split("\n")
        place = self.bug.line - 1
        for first in range(place, -1, -1):
            before = [*lines[first:place], ""] if first < place else [""]
            old = "\n".join(before) + self.bug.buggy_line
            if self.bug.buggy_text.count(old) == 1:
                return old, "\n".join(before) + self.bug.right_line
        return self.bug.buggy_text, self.bug.right_text

    def _submit(self) -> ToolCall:
        return ToolCall("finish", "{}") if self.edits_by_tool else _run("submit")


def _run(command: str) -> ToolCall:
    return ToolCall("execute_bash", json.dumps({"command": command}, ensure_ascii=False))


def _editor(command: str, file: str, **arguments: Any) -> ToolCall:
    content = {"command": command, "path": f"/work/{file}", **arguments}
    return ToolCall("str_replace_editor", json.dumps(content, ensure_ascii=False))
