"""The editor of files: it views, creates, replaces, inserts and undoes, through the sandbox alone."""

from __future__ import annotations

import errno
import posixpath
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
CONTEXT_LINES = 4
"""Lines that are shown before and after an edit."""
MAX_LINES = 4000
"""Of a file, shown at once: half from each end of what was asked for."""
MAX_PLACES = 20
"""Named, where a text stands more than once."""
MAX_HISTORY_BYTES = 8 << 20
"""Kept of the earlier versions of all files of a sandbox; the oldest go first."""
SCRIPT_TIMEOUT_S = 30.0


class EditError(Exception):
    """An edit cannot be done; the text tells the model why."""


class Editor:
    """Edits the files of any number of sandboxes, each with a history of its own, which ends with the sandbox."""

    def __init__(self) -> None:
        self._histories: WeakKeyDictionary[Sandbox, list[tuple[str, bytes | None]]] = WeakKeyDictionary()

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
        try:
            found = await _found(sandbox, path)
        except FileNotFoundError:
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
        try:
            await _found(sandbox, path)
        except FileNotFoundError:
            await self._write(sandbox, path, None, file_text)
            return f"{path} is created."
        raise EditError(f"{path} exists already: change it with str_replace or insert.")

    async def _str_replace(self, sandbox: Sandbox, path: str, old_str: str, new_str: str = "", **_: Any) -> str:
        content = await _content(sandbox, path)
        lines = _places(content, old_str) if old_str else []
        if not lines:
            raise EditError(
                f"old_str does not stand in {path}: it must be the text of the file, with its white space and without "
                "line numbers; nothing was changed."
            )
        if len(lines) > 1:
            more = "more than " * (len(lines) > MAX_PLACES)
            named = ", ".join(map(str, lines[:MAX_PLACES]))
            raise EditError(
                f"old_str stands {more}{len(lines[:MAX_PLACES])} times in {path}, in lines {named}: give it with more "
                "of the lines around; nothing was changed."
            )
        changed = content.replace(old_str, new_str)
        await self._write(sandbox, path, content, changed)
        return _around(path, changed, lines[0], new_str.count("\n") + 1)

    async def _insert(self, sandbox: Sandbox, path: str, insert_line: int, new_str: str, **_: Any) -> str:
        content = await _content(sandbox, path)
        lines = content.removesuffix("\n").split("\n") if content else []
        if not 0 <= insert_line <= len(lines):
            raise EditError(f"insert_line {insert_line} does not fit: {path} has {len(lines)} lines; 0 is its top.")
        end = "\n" if insert_line == len(lines) or content.endswith("\n") else ""
        added = new_str.removesuffix("\n").split("\n")
        lines[insert_line:insert_line] = added
        changed = "\n".join(lines) + end
        await self._write(sandbox, path, content, changed)
        return _around(path, changed, insert_line + 1, len(added))

    async def _undo_edit(self, sandbox: Sandbox, path: str, **_: Any) -> str:
        history = self._histories.get(sandbox, [])
        index = max((index for index, (edited, _) in enumerate(history) if edited == path), default=None)
        if index is None:
            raise EditError(f"There is no edit of {path} to take back.")
        await _put(sandbox, path, history[index][1])
        is_gone = history.pop(index)[1] is None
        return f"The {'creation' if is_gone else 'last edit'} of {path} is taken back{': it is gone' * is_gone}."

    async def _write(self, sandbox: Sandbox, path: str, before: str | None, after: str) -> None:
        """Write a file, and remember what stood there."""
        await _put(sandbox, path, after.encode(errors="replace"))
        history = self._histories.setdefault(sandbox, [])
        history.append((path, None if before is None else before.encode()))
        while sum(len(content or b"") for _, content in history) > MAX_HISTORY_BYTES:
            del history[0]


async def _put(sandbox: Sandbox, path: str, content: bytes | None) -> None:
    """Make a file hold this, or be gone; raises `EditError` where a command could not do it either."""
    try:
        if content is not None:
            await sandbox.write_files({path: content})
        elif (removal := await sandbox.exec(f"rm -f -- {shlex.quote(path)}", SCRIPT_TIMEOUT_S)).exit_code != 0:
            raise OSError(removal.output.strip())
    except OSError as error:
        raise EditError(f"{path} cannot be written: {error.strerror or error}.") from error


async def _found(sandbox: Sandbox, path: str) -> bytes:
    """Return a file; raises `FileNotFoundError`, and `EditError` where it is too large."""
    try:
        return await sandbox.read_file(path)
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise EditError(f"{path} is too large for the editor: {error.strerror}; use head, grep or sed.") from error


async def _content(sandbox: Sandbox, path: str) -> str:
    try:
        return _text(await _found(sandbox, path), path)
    except FileNotFoundError as error:
        raise EditError(f"{path} is no file: view the folder to see what there is, or create it.") from error


def _text(content: bytes, path: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise EditError(f"{path} holds no text in UTF-8.") from error


async def _listed(sandbox: Sandbox, path: str) -> str:
    """Return what is in a folder, two levels deep and without what is hidden; each name is one line."""
    script = f"cd -- {shlex.quote(path)} && find . -mindepth 1 -maxdepth 2 -not -path '*/.*' -print0 | sort -z"
    listing = await sandbox.exec(script, SCRIPT_TIMEOUT_S)
    if listing.exit_code != 0:
        raise EditError(f"{path} does not exist, or cannot be read.")
    names = [_escaped(name.removeprefix("./")) for name in listing.output.split("\0") if name]
    left_out = [f"[{listing.num_cut_bytes} bytes of names left out]"] if listing.num_cut_bytes else []
    return "\n".join([f"{path} holds:", *(names or ["(nothing)"]), *left_out])


def _escaped(name: str) -> str:
    """Return the name of a file as printable text, with escapes as Python writes them."""
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in name)


def _places(content: str, text: str) -> list[int]:
    """Return the lines where a text stands: the first `MAX_PLACES`, and one more if there are more."""
    lines, line, last, place = [], 1, 0, content.find(text)
    while place >= 0 and len(lines) <= MAX_PLACES:
        line += content.count("\n", last, place)
        lines.append(line)
        last, place = place, content.find(text, place + 1)
    return lines


def _numbered(lines: list[str], first: int, last: int) -> str:
    """Return lines from the first to the last, each with its number, as `cat -n` does; not the middle of too many."""
    num_cut = last - first + 1 - MAX_LINES
    if num_cut > 0:
        half = MAX_LINES // 2
        head, tail = _numbered(lines, first, first + half - 1), _numbered(lines, last - half + 1, last)
        return f"{head}\n[{num_cut} lines left out]\n{tail}"
    return "\n".join(f"{number:6}\t{lines[number - 1]}" for number in range(first, last + 1))


def _around(path: str, content: str, first: int, num_lines: int) -> str:
    """Return what stands around an edit now."""
    lines = content.removesuffix("\n").split("\n")
    begin, end = max(1, first - CONTEXT_LINES), min(len(lines), first + num_lines - 1 + CONTEXT_LINES)
    return f"{path} is edited. It reads now:\n{_numbered(lines, begin, end)}"
