"""Which bugs can a line have? Edits of one line each, found in the syntax tree, that a programmer might have made.

The text around an edit stays as it is. What is found, and in which order, depends on the text alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dagger_exp.envs.pypi_bugs.operators import KINDS, Source
from dagger_exp.seeding import draw
from dagger_exp.types import Key

MAX_LINE_CHARS = 160
"""A longer line is no line that a small student could write again."""
UNTOUCHED = (ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal)
"""Places of nodes in an f-string are not told the same way by all versions of Python."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A bug: one line of a file that reads otherwise. `line` counts from 1."""

    kind: str
    line: int
    right_line: str
    buggy_line: str

    def applied(self, text: str) -> str:
        """Return a text with the bug."""
        lines = text.split("\n")
        assert lines[self.line - 1] == self.right_line
        lines[self.line - 1] = self.buggy_line
        return "\n".join(lines)

    def matters(self, text: str) -> bool:
        """Return whether a text with the bug is Python, and means something else than without it."""
        try:
            return ast.dump(ast.parse(self.applied(text))) != ast.dump(ast.parse(text))
        except (SyntaxError, ValueError):
            return False


def mutations(text: str) -> Sequence[Mutation]:
    """Return the mutations of a Python file, each text once; some are not Python, or mean the same."""
    if "\r" in text or "\f" in text or not text.endswith("\n"):
        return ()
    whole = Source(tuple(line.encode() for line in text.split("\n")))
    found: dict[tuple[int, str], Mutation] = {}
    for node, source in _nodes(ast.parse(text), whole):
        for kind, operator in KINDS.items():
            for span, replacement in operator(node, source):
                right = source.line(span.line)
                buggy = source.replaced(span, replacement)
                if max(len(right), len(buggy)) <= MAX_LINE_CHARS:
                    found.setdefault((span.line, buggy), Mutation(kind, span.line, right, buggy))
    return list(found.values())


def ordered(found: Sequence[tuple[str, Mutation]], seed: int) -> list[tuple[str, Mutation]]:
    """Return mutations of named files in an order drawn by the seed, in which the kinds take turns."""
    ranks: dict[str, int] = {}
    drawn: list[tuple[int, str, tuple[str, Mutation]]] = []
    for file, mutation in sorted(found, key=lambda pair: draw(_key(seed, *pair), "order of mutations")):
        ranks[mutation.kind] = ranks.get(mutation.kind, -1) + 1
        drawn.append((ranks[mutation.kind], mutation.kind, (file, mutation)))
    return [pair for _, _, pair in sorted(drawn, key=lambda row: row[:2])]


def _key(seed: int, file: str, mutation: Mutation) -> Key:
    return Key(seed, 0, f"{file}:{mutation.line}:{mutation.buggy_line}", 0)


def _nodes(node: ast.AST, source: Source) -> Iterator[tuple[ast.AST, Source]]:
    """Yield the nodes that code runs through, each with the file as its function sees it; no annotations."""
    if isinstance(node, UNTOUCHED):
        return
    if isinstance(node, FUNCTIONS):
        source = source.within(node)
    yield node, source
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _nodes(child, source)
