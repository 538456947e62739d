"""Bugs of one line, what is hidden of a suite, and what an edit may not reach for: on texts alone."""

from __future__ import annotations

import ast

import pytest

from dagger_exp.envs.pypi_bugs.hiding import hidden_functions, visible_files
from dagger_exp.envs.pypi_bugs.mutations import mutations, ordered
from dagger_exp.envs.pypi_bugs.packages import Package, Project, listed
from dagger_exp.envs.pypi_bugs.tampering import tampering
from dagger_exp.types import Key

TEXT = '''
def clip(value, low=0, high=None):
    """Bounds: low < high, not (a + b)."""
    if high is not None and value > high or not value:
        raise ValueError(f"{value + 1} is too high")
    log(value)
    return max(value  -  low, é["ü"][1])
'''


def kinds(text: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for mutation in mutations(text):
        found.setdefault(mutation.kind, set()).add(mutation.buggy_line.strip())
    return found


@pytest.mark.parametrize(
    ("kind", "buggy"),
    [
        ("swapped_operator", 'return max(value  +  low, é["ü"][1])'),
        ("swapped_comparison", "if high is not None or value > high or not value:"),
        ("swapped_comparison", "if high is None and value > high or not value:"),
        ("off_by_one", "if high is not None and value >= high or not value:"),
        ("off_by_one", 'return max(value  -  low, é["ü"][2])'),
        ("condition", "if not (high is not None and value > high or not value):"),
        ("condition", "if value > high or not value:"),
        ("condition", "if high is not None and value > high or (value):"),
        ("wrong_variable", 'return max(value  -  value, é["ü"][1])'),
        ("wrong_default", "def clip(value, low=1, high=None):"),
        ("removed_call", "pass"),
        ("swapped_arguments", 'return max(é["ü"][1], value  -  low)'),
        ("wrong_exception", 'raise TypeError(f"{value + 1} is too high")'),
    ],
)
def test_every_kind_of_bug_is_made_and_keeps_the_text_around_it(kind: str, buggy: str) -> None:
    assert buggy in kinds(TEXT)[kind]


def test_a_bug_is_one_line_outside_of_texts() -> None:
    for mutation in mutations(TEXT):
        before, after = TEXT.split("\n"), mutation.applied(TEXT).split("\n")
        differing = [number for number, pair in enumerate(zip(before, after, strict=True), 1) if pair[0] != pair[1]]
        assert differing == [mutation.line]
        assert '"""Bounds' not in mutation.buggy_line
        assert "{value + 1}" in mutation.applied(TEXT)


def test_what_means_the_same_or_is_no_python_does_not_matter() -> None:
    by_line = {mutation.buggy_line.strip(): mutation for mutation in mutations("def f(a, b):\n    return g(a, a), b\n")}
    assert not by_line["return g(a, a), b"].matters("def f(a, b):\n    return g(a, a), b\n")
    assert by_line["return g(a, b), b"].matters("def f(a, b):\n    return g(a, a), b\n")


def test_the_order_is_the_seeds_and_the_kinds_take_turns() -> None:
    found = [("a.py", mutation) for mutation in mutations(TEXT)]
    assert ordered(found, 0) == ordered(found[::-1], 0)
    assert ordered(found, 0) != ordered(found, 1)
    first = [mutation.kind for _, mutation in ordered(found, 0)[:9]]
    assert len(set(first)) == 9


SUITE = """import pytest

def test_one():
    assert 1

class TestAll:
    @pytest.mark.parametrize("x", [1,
                                   2])
    def test_two(self, x):
        assert x

def test_three():
    assert 1
"""


def project(tests: str) -> Project:
    package = Package("p", "1", "MIT", "train", ["p.py"], ["t.py"], "")
    return Project(package, {"p.py": b"", "t.py": tests.encode()}, modules=("p.py",), tests=("t.py",))


def test_hidden_functions_are_cut_whole_and_the_rest_stays() -> None:
    seen = visible_files(project(SUITE), frozenset(["t.py::TestAll::test_two", "t.py::test_one"]))["t.py"].decode()
    names = [node.name for node in ast.walk(ast.parse(seen)) if isinstance(node, ast.FunctionDef)]
    assert names == ["test_three"]
    assert "parametrize" not in seen


def test_half_is_hidden_of_what_can_be_found() -> None:
    names = ["t.py::TestAll::test_two", "t.py::test_one", "t.py::test_three", "t.py::TestAll::test_inherited"]
    drawn = {hidden_functions(names, project(SUITE), Key(0, 0, str(n), 0)) for n in range(20)}
    assert {len(hidden) for hidden in drawn} == {2}
    assert len(drawn) == 3
    assert not any("t.py::TestAll::test_inherited" in hidden for hidden in drawn)
    assert not hidden_functions(names[:1], project(SUITE), Key(0, 0, "", 0))


RIGHT = b"import sys\ndef f(x):\n    return sys.maxsize if x is None else g(x)\n"


@pytest.mark.parametrize(
    ("edit", "reached"),
    [
        ("def f(x):\n    import os\n    return x", "import of os"),
        ("import _pytest.reports as r\nr.x = 1", "import of _pytest.reports"),
        ("from json import loads\n", "import of json.loads"),
        ("def f(x):\n    return sys.modules, sys", "modules, sys"),
        ("def f(x):\n    return eval(x)", "eval"),
        ("def f(x):\n    return getattr(x, 'a')", "getattr"),
        ("def f(x):\n    return open(x)", "open"),
        ("def f(x):\n    return (y for y in x).gi_frame.f_back", "f_back, gi_frame"),
        ("class A:\n    def __eq__(self, other):\n        return True", "__eq__"),
        ("A = type('A', (), {'__eq__': h})", "__eq__, type"),
        ("def f(x):\n    return ().__class__.__subclasses__()", "__class__, __subclasses__"),
        ("match f:\n    case A(gc=x):\n        pass", "gc"),
    ],
)
def test_what_no_repair_needs_is_named(edit: str, reached: str) -> None:
    found = tampering(b"import sys\n" + edit.encode(), RIGHT)
    assert set(reached.split(", ")) & set(found.split(", "))


@pytest.mark.parametrize(
    "edit",
    [
        RIGHT.decode().replace("is None", "is not None"),
        "import sys\ndef f(x):\n    y = sorted(x)\n    return {k: len(v) for k, v in zip(y, x)} or sys.maxsize\n",
        "",
    ],
)
def test_a_repair_is_not_tampering(edit: str) -> None:
    assert not tampering(edit.encode(), RIGHT)


@pytest.mark.parametrize(
    ("submitted", "reason"),
    [
        (b"#" * (1 << 17), "its size"),
        (b"this is no python", "code that cannot be parsed"),
        (b"x = 1\0", "code that cannot be parsed"),
        (b"x = " + b"-" * 20_000 + b"1\n" + RIGHT, "code that cannot be parsed"),
        (b"x = " + b"[" * 150 + b"]" * 150 + b"\n" + b"x" + b".a" * 30_000, "code that cannot be parsed"),
        (b"# coding: nothing\n", "code that cannot be parsed"),
    ],
)
def test_a_file_that_cannot_be_checked_is_refused(submitted: bytes, reason: str) -> None:
    assert tampering(submitted, RIGHT) == reason


def test_a_file_that_nobody_changed_is_not_tampering_even_where_it_cannot_be_parsed() -> None:
    assert not tampering(b"print 'two'", b"print 'two'")


def test_the_splits_of_the_list_share_no_package_and_all_licences_are_free() -> None:
    packages = listed().values()
    assert {package.split for package in packages} == {"train", "validation", "heldout"}
    assert len(packages) >= 8
    assert {package.license for package in packages} <= {"MIT", "BSD-3-Clause", "Apache-2.0"}
