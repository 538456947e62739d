"""The editor of files: it views, creates, replaces, inserts and undoes, through the sandbox alone."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from dagger_exp.protocols import Sandbox

ROOT = "/work"
NEEDS: Mapping[str, tuple[str, ...]] = {
    "create": ("file_text",),
    "str_replace": ("old_str",),
    "insert": ("insert_line", "new_str"),
}
"""What a command cannot do without, beside the path."""
LINE = re.compile(r"[^\n]*\n|[^\n]+")
CONTEXT_LINES = 4
"""Lines that are shown before and after an edit."""
SCRIPT_TIMEOUT_S = 30.0


class EditError(Exception):
    """An edit cannot be done; the text tells the model why."""


class Editor:
    """Edits the files of any number of sandboxes, each with a history of its own, which ends with the sandbox."""

    def __init__(self) -> None:
        self._histories: WeakKeyDictionary[Sandbox, dict[str, list[bytes | None]]] = WeakKeyDictionary()

    async def run(self, sandbox: Sandbox, command: str, path: str, **arguments: Any) -> str:
        """Return what there is to see after a command.

        Raises:
            EditError: it cannot be done.
            SandboxError: the sandbox is gone.
        """
        whole = posixpath.normpath(posixpath.join(ROOT, path))
        if whole != ROOT and not whole.startswith(f"{ROOT}/"):
            raise EditError(f"{path} is not below {ROOT}, and only what is there can be viewed and edited.")
        return await getattr(self, f"_{command}")(sandbox, whole, **arguments)

    async def _view(self, sandbox: Sandbox, path: str, view_range: list[int] | None = None, **_: Any) -> str:
        found = await _found(sandbox, path)
        if found is None:
            return await _listed(sandbox, path)
        lines = _text(found, path).removesuffix("\n").split("\n")
        first, last = view_range if view_range and len(view_range) == 2 else (1, -1)
        last = len(lines) if last == -1 else last
        if (view_range is not None and len(view_range) != 2) or not 1 <= first <= last <= len(lines):
            raise EditError(
                f"view_range {view_range} does not fit: it is two line numbers, the smaller first, and {path} has the "
                f"lines 1 to {len(lines)}."
            )
        return _numbered(lines, first, last)

    async def _create(self, sandbox: Sandbox, path: str, file_text: str, **_: Any) -> str:
        if await _found(sandbox, path) is not None:
            raise EditError(f"{path} exists already: change it with str_replace or insert.")
        await self._write(sandbox, path, None, file_text)
        return f"{path} is created."

    async def _str_replace(self, sandbox: Sandbox, path: str, old_str: str, new_str: str = "", **_: Any) -> str:
        content = await _content(sandbox, path)
        before, found, after = content.partition(old_str) if old_str else ("", "", "")
        if not found:
            raise EditError(
                f"old_str does not stand in {path}: it must be the text of the file, with its white space and without "
                "line numbers; nothing was changed."
            )
        if old_str in content[len(before) + 1 :]:
            lines = [content[:place].count("\n") + 1 for place in _places(content, old_str)]
            raise EditError(
                f"old_str stands {len(lines)} times in {path}, in lines {', '.join(map(str, lines))}: give it with "
                "more of the lines around; nothing was changed."
            )
        await self._write(sandbox, path, content, before + new_str + after)
        return _around(path, before + new_str + after, before.count("\n") + 1, new_str.count("\n") + 1)

    async def _insert(self, sandbox: Sandbox, path: str, insert_line: int, new_str: str, **_: Any) -> str:
        content = await _content(sandbox, path)
        lines = LINE.findall(content)
        if not 0 <= insert_line <= len(lines):
            raise EditError(f"insert_line {insert_line} does not fit: {path} has {len(lines)} lines; 0 is its top.")
        head = "".join(lines[:insert_line])
        head += "\n" if head and not head.endswith("\n") else ""
        added = new_str if new_str.endswith("\n") else new_str + "\n"
        changed = head + added + "".join(lines[insert_line:])
        await self._write(sandbox, path, content, changed)
        return _around(path, changed, insert_line + 1, added.count("\n"))

    async def _undo_edit(self, sandbox: Sandbox, path: str, **_: Any) -> str:
        versions = self._histories.get(sandbox, {}).get(path)
        if not versions:
            raise EditError(f"There is no edit of {path} to take back.")
        await _put(sandbox, path, versions[-1])
        is_gone = versions.pop() is None
        return f"The {'creation' if is_gone else 'last edit'} of {path} is taken back{': it is gone' * is_gone}."

    async def _write(self, sandbox: Sandbox, path: str, before: str | None, after: str) -> None:
        """Write a file, and remember what stood there."""
        await _put(sandbox, path, after.encode(errors="replace"))
        history = self._histories.setdefault(sandbox, {})
        history.setdefault(path, []).append(None if before is None else before.encode())


async def _put(sandbox: Sandbox, path: str, content: bytes | None) -> None:
    """Make a file hold this, or be gone; raises `EditError` where a command could not do it either."""
    try:
        if content is not None:
            await sandbox.write_files({path: content})
        elif (removal := await sandbox.exec(f"rm -f -- {shlex.quote(path)}", SCRIPT_TIMEOUT_S)).exit_code != 0:
            raise OSError(removal.output.strip())
    except OSError as error:
        raise EditError(f"{path} cannot be written: {error.strerror or error}.") from error


async def _found(sandbox: Sandbox, path: str) -> bytes | None:
    try:
        return await sandbox.read_file(path)
    except FileNotFoundError:
        return None


async def _content(sandbox: Sandbox, path: str) -> str:
    found = await _found(sandbox, path)
    if found is None:
        raise EditError(f"{path} is no file: view the folder to see what there is, or create it.")
    return _text(found, path)


def _text(content: bytes, path: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise EditError(f"{path} holds no text in UTF-8.") from error


async def _listed(sandbox: Sandbox, path: str) -> str:
    """Return what is in a folder, two levels deep and without what is hidden."""
    script = f"cd -- {shlex.quote(path)} && find . -mindepth 1 -maxdepth 2 -not -path '*/.*' | sort | cut -c3-"
    listing = await sandbox.exec(script, SCRIPT_TIMEOUT_S)
    if listing.exit_code != 0:
        raise EditError(f"{path} does not exist, or cannot be read.")
    return f"{path} holds:\n{listing.output.strip() or '(nothing)'}"


def _places(content: str, text: str) -> list[int]:
    return [place for place in range(len(content)) if content.startswith(text, place)]


def _numbered(lines: list[str], first: int, last: int) -> str:
    """Return lines from the first to the last, each with its number, as `cat -n` does."""
    return "\n".join(f"{number:6}\t{lines[number - 1]}" for number in range(first, last + 1))


def _around(path: str, content: str, first: int, num_lines: int) -> str:
    """Return what stands around an edit now."""
    lines = content.removesuffix("\n").split("\n")
    begin, end = max(1, first - CONTEXT_LINES), min(len(lines), first + num_lines - 1 + CONTEXT_LINES)
    return f"{path} is edited. It reads now:\n{_numbered(lines, begin, end)}"
