"""The editor: what it shows, what it changes, what it takes back, and what it says where it cannot."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.scaffolds.editor import EditError, Editor
from tests.scaffolds.conftest import FolderSandbox

LINES = "".join(f"line {number}\n" for number in range(1, 13))


class Desk:
    """An editor at a sandbox with the file `a.txt`."""

    def __init__(self, sandbox: FolderSandbox, content: str = LINES) -> None:
        self.sandbox, self.editor = sandbox, Editor()
        (sandbox.folder / "a.txt").write_bytes(content.encode())

    def __call__(self, command: str, path: str = "/work/a.txt", **arguments: Any) -> str:
        return asyncio.run(self.editor.run(self.sandbox, command, path, **arguments))

    @property
    def content(self) -> str:
        return (self.sandbox.folder / "a.txt").read_bytes().decode()


@pytest.fixture
def desk(sandbox: FolderSandbox) -> Desk:
    return Desk(sandbox)


def test_a_file_is_shown_with_the_numbers_of_its_lines(desk: Desk) -> None:
    assert desk("view").splitlines()[::11] == ["     1\tline 1", "    12\tline 12"]
    assert desk("view", view_range=[2, 3]) == "     2\tline 2\n     3\tline 3"
    assert desk("view", "a.txt", view_range=[12, -1]) == "    12\tline 12"


def test_a_folder_is_listed_two_levels_deep_without_what_is_hidden(desk: Desk) -> None:
    for path in ("b/c/d/e.txt", ".git/f", "b/.hidden", "b/it's here"):
        asyncio.run(desk.sandbox.write_files({f"/work/{path}": b""}))
    assert desk("view", "/work") == "/work holds:\na.txt\nb\nb/c\nb/it's here"
    assert desk("view", "b/c/d") == "/work/b/c/d holds:\ne.txt"


def test_a_text_that_stands_once_is_replaced(desk: Desk) -> None:
    shown = desk("str_replace", old_str="line 6\n", new_str="six\nsix and a half\n")
    assert desk.content == LINES.replace("line 6\n", "six\nsix and a half\n")
    assert shown.startswith("/work/a.txt is edited. It reads now:\n     2\tline 2\n")
    assert "     7\tsix and a half\n" in shown
    desk("str_replace", old_str="\nsix and a half")
    assert desk.content == LINES.replace("line 6", "six")


@pytest.mark.parametrize(
    ("content", "line", "new", "expected"),
    [
        ("a\nb\n", 0, "x\n", "x\na\nb\n"),
        ("a\nb\n", 1, "x", "a\nx\nb\n"),
        ("a\nb\n", 2, "x", "a\nb\nx\n"),
        ("a\nb", 2, "x\ny", "a\nb\nx\ny\n"),
        ("", 0, "x", "x\n"),
        ("a\x0cb\u2028c\r\nd\n", 1, "x", "a\x0cb\u2028c\r\nx\nd\n"),
    ],
)
def test_lines_are_inserted_after_a_line(
    content: str, line: int, new: str, expected: str, sandbox: FolderSandbox
) -> None:
    desk = Desk(sandbox, content)
    shown = desk("insert", insert_line=line, new_str=new)
    assert desk.content == expected
    assert f"{line + 1:6}\tx" in shown


def test_edits_are_taken_back_one_by_one(desk: Desk) -> None:
    desk("insert", insert_line=0, new_str="é")
    desk("str_replace", old_str="é", new_str="漢")
    assert desk("undo_edit") == "The last edit of /work/a.txt is taken back."
    assert desk.content == "é\n" + LINES
    desk("undo_edit")
    assert desk.content == LINES
    with pytest.raises(EditError, match=r"There is no edit of /work/a\.txt to take back"):
        desk("undo_edit")


def test_a_file_that_was_created_is_gone_when_that_is_taken_back(desk: Desk) -> None:
    assert desk("create", "new/it's.py", file_text="x = 1\n") == "/work/new/it's.py is created."
    assert desk("view", "new/it's.py") == "     1\tx = 1"
    assert "it is gone" in desk("undo_edit", "new/it's.py")
    assert not (desk.sandbox.folder / "new/it's.py").exists()


def test_what_cannot_be_taken_back_can_be_taken_back_later(desk: Desk) -> None:
    desk("create", "b", file_text="x")
    place = desk.sandbox.folder / "b"
    place.unlink()
    (place / "c").mkdir(parents=True)
    with pytest.raises(EditError, match="/work/b cannot be written: rm: cannot remove"):
        desk("undo_edit", "b")
    (place / "c").rmdir()
    place.rmdir()
    assert desk("undo_edit", "b") == "The creation of /work/b is taken back: it is gone."


def test_each_sandbox_has_its_own_history_and_it_ends_with_the_sandbox(tmp_path: Path) -> None:
    desks = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        desks.append(Desk(FolderSandbox(tmp_path / name)))
    one, two = desks
    two.editor = one.editor
    one("insert", insert_line=0, new_str="x")
    with pytest.raises(EditError, match="no edit"):
        two("undo_edit")
    two("insert", insert_line=0, new_str="y")
    assert len(one.editor._histories) == 2
    two.sandbox = one.sandbox
    gc.collect()
    assert len(one.editor._histories) == 1


@pytest.mark.parametrize(
    ("command", "arguments", "problem"),
    [
        ("view", {"path": "nothere"}, "/work/nothere does not exist, or cannot be read"),
        ("view", {"path": "/etc/passwd"}, "/etc/passwd is not below /work"),
        ("view", {"path": "/work/../etc/passwd"}, "is not below /work"),
        ("view", {"path": "/workshop"}, "is not below /work"),
        ("view", {"path": "binary"}, "/work/binary holds no text in UTF-8"),
        ("view", {"view_range": [3, 2]}, r"view_range \[3, 2\] does not fit.*the lines 1 to 12"),
        ("view", {"view_range": [0, 2]}, "does not fit"),
        ("view", {"view_range": [1, 13]}, "does not fit"),
        ("view", {"view_range": [1]}, "it is two line numbers"),
        ("create", {"file_text": "x"}, r"/work/a\.txt exists already: change it with str_replace or insert"),
        ("create", {"path": "a.txt/b", "file_text": "x"}, "cannot be written"),
        ("create", {"path": "/work", "file_text": "x"}, "cannot be written"),
        ("str_replace", {"old_str": "nothing"}, r"old_str does not stand in /work/a\.txt.*nothing was changed"),
        ("str_replace", {"old_str": ""}, "old_str does not stand"),
        ("str_replace", {"old_str": "line 1"}, "old_str stands 4 times.*in lines 1, 10, 11, 12.*nothing was changed"),
        ("str_replace", {"path": "b", "old_str": "x"}, "/work/b is no file"),
        ("insert", {"insert_line": 13, "new_str": "x"}, r"insert_line 13 does not fit: /work/a\.txt has 12 lines"),
        ("insert", {"insert_line": -1, "new_str": "x"}, "insert_line -1 does not fit"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(
    command: str, arguments: dict[str, Any], problem: str, desk: Desk
) -> None:
    (desk.sandbox.folder / "binary").write_bytes(b"\xff\x00")
    with pytest.raises(EditError, match=problem):
        desk(command, **arguments)
    assert desk.content == LINES
    with pytest.raises(EditError, match="no edit"):
        desk("undo_edit")


@pytest.mark.parametrize(("num_lines", "num_shown"), [(4000, 4000), (2_000_000, 4001)])
def test_the_middle_of_too_many_lines_is_not_shown(num_lines: int, num_shown: int, sandbox: FolderSandbox) -> None:
    desk = Desk(sandbox, "\n" * num_lines)
    lines = desk("view").split("\n")
    assert len(lines) == num_shown
    assert (lines[0], lines[-1]) == ("     1\t", f"{num_lines:6}\t")
    assert num_lines == 4000 or f"[{num_lines - 4000} lines left out]" in lines
    assert len(desk("insert", insert_line=num_lines - 1, new_str="\n" * num_lines).split("\n")) <= 4002


def test_a_text_that_stands_everywhere_is_told_by_its_first_places(sandbox: FolderSandbox) -> None:
    desk = Desk(sandbox, "a\n" * (1 << 19))
    with pytest.raises(EditError, match=r"stands more than 20 times in .*, in lines 1, 2, .* 20: give") as told:
        desk("str_replace", old_str="a", new_str="b")
    assert len(str(told.value)) < 300


def test_history_keeps_the_latest_versions_alone(sandbox: FolderSandbox) -> None:
    desk = Desk(sandbox, "a\n" * (1 << 20))
    for index in range(10):
        desk("insert", insert_line=0, new_str=f"{index}")
    assert sum(len(content or b"") for _, content in desk.editor._histories[sandbox]) <= 8 << 20
    for index in reversed(range(7, 10)):
        assert desk.content.startswith(f"{index}\n")
        desk("undo_edit")
    with pytest.raises(EditError, match="no edit"):
        desk("undo_edit")


def test_names_of_files_are_shown_escaped(desk: Desk) -> None:
    for name in ("a\nb", "\x1b[2Jc", "back\\slash", "ü 漢", "\u202ed"):
        (desk.sandbox.folder / name).touch()
    shown = ["\\x1b[2Jc", "a.txt", "a\\nb", "back\\\\slash", "ü 漢", "\\u202ed"]
    assert sorted(desk("view", "/work").split("\n")) == sorted(["/work holds:", *shown])
