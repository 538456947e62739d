"""What may the agent see? A part of the failing tests, and a statement that does not tell where the bug is."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

from dagger_exp.envs.pypi_bugs.packages import Project
from dagger_exp.envs.pypi_bugs.run_tests import MAX_SHOWN
from dagger_exp.seeding import draw
from dagger_exp.types import Key

STATEMENT = """{name} {version} lies in {folders}. One of its lines is wrong, and tests fail because of that:

{failures}

Repair the package; other tests will judge it, so that edits of tests change nothing. `python3 run_tests.py` runs the \
tests that you have. Submit when they pass."""
Test = ast.FunctionDef | ast.AsyncFunctionDef


def function_of(test: str) -> str:
    """Return the function of a test: what stands before its parameters."""
    return test.partition("[")[0]


def hidden_functions(functions: Sequence[str], project: Project, key: Key) -> frozenset[str]:
    """Return the half of some test functions that an agent is not to see, drawn by the key.

    Of an odd number the smaller half; less where functions do not stand in the file that pytest names, as inherited
    ones; none where that leaves none.
    """
    can_be_cut = [name for name in functions if _places(project, name)]
    drawn = sorted(can_be_cut, key=lambda name: draw(key, f"hide {name}"))
    return frozenset(drawn[: len(functions) // 2])


def visible_files(project: Project, hidden: frozenset[str]) -> dict[str, bytes]:
    """Return the files of a package without some test functions."""
    seen = dict(project.files)
    for path in sorted({name.partition("::")[0] for name in hidden}):
        lines = project.files[path].decode().split("\n")
        for name in hidden:
            if name.partition("::")[0] == path:
                for test in _places(project, name):
                    _cut(test, lines)
        seen[path] = "\n".join(line for line in lines if line is not CUT).encode()
    return seen


def statement(project: Project, failures: Mapping[str, str]) -> str:
    """Return the task as a user would tell it: which tests fail, and with which messages."""
    shown = [f"{test}: {message}".rstrip(": ") for test, message in list(failures.items())[:MAX_SHOWN]]
    more = len(failures) - len(shown)
    return STATEMENT.format(
        name=project.package.name,
        version=project.package.version,
        folders=" and ".join(f"/work/{folder}" for folder in project.folders),
        failures="\n".join([*shown, *([f"and {more} more"] if more else [])]),
    )


CUT: str = "\x00"
"""A line that is left out; no line of Python holds that character."""


def _cut(test: Test, lines: list[str]) -> None:
    """Leave out a function, but for a `pass` in its place, so that what is around it stays whole."""
    first = min([test.lineno, *(decorator.lineno for decorator in test.decorator_list)])
    lines[first - 1 : test.end_lineno] = [CUT] * ((test.end_lineno or first) - first + 1)
    lines[first - 1] = " " * test.col_offset + "pass"


def _places(project: Project, name: str) -> list[Test]:
    """Return where a test function is defined; nothing where it cannot be told."""
    path, *classes, function = name.split("::")
    if path not in project.tests:
        return []
    bodies = [ast.parse(project.files[path]).body]
    for inner in classes:
        bodies = [
            node.body for body in bodies for node in body if isinstance(node, ast.ClassDef) and node.name == inner
        ]
    found = [node for body in bodies for node in body if isinstance(node, Test) and node.name == function]
    return [node for node in found if node.end_lineno is not None]
