"""What can be wrong in a node of a syntax tree? One function per kind of bug, which yields places and what to put there."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

ARITHMETIC = {"**": "*", "//": "/", "<<": ">>", ">>": "<<", "+": "-", "-": "+", "*": "+", "/": "*", "%": "*"}
ARITHMETIC |= {"&": "|", "|": "&", "^": "&", "@": "*"}
BOOLEAN = {"and": "or", "or": "and"}
COMPARISONS = {"not in": "in", "is not": "is", "<=": ">", ">=": "<", "==": "!=", "!=": "=="}
COMPARISONS |= {"<": ">=", ">": "<=", "in": "not in", "is": "is not"}
BOUNDS = {"<=": "<", ">=": ">", "<": "<=", ">": ">="}
EXCEPTIONS = {
    "ValueError": "TypeError",
    "TypeError": "ValueError",
    "KeyError": "IndexError",
    "IndexError": "KeyError",
    "AttributeError": "KeyError",
    "StopIteration": "ValueError",
    "OverflowError": "ValueError",
    "ZeroDivisionError": "ValueError",
}
"""Of built-in exceptions; any other becomes a `RuntimeError`."""


class Span(NamedTuple):
    """A part of a line: its number from 1, and columns in bytes, as syntax trees count them."""

    line: int
    begin: int
    end: int


Edits = Iterator[tuple[Span, str]]


class Source:
    """The lines of a file."""

    def __init__(self, text: str) -> None:
        self._lines = [line.encode() for line in text.split("\n")]

    def line(self, number: int) -> str:
        """Return a line, counted from 1."""
        return self._lines[number - 1].decode()

    def text(self, span: Span) -> str:
        """Return what stands at a place."""
        return self._lines[span.line - 1][span.begin : span.end].decode()

    def replaced(self, span: Span, text: str) -> str:
        """Return the line of a place with another text there."""
        line = self._lines[span.line - 1]
        return (line[: span.begin] + text.encode() + line[span.end :]).decode()


@dataclass(frozen=True, slots=True)
class Scope:
    """The names that belong to the function around a node; none outside of functions."""

    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Scope:
        """Return the parameters and the assigned names of a function."""
        nodes = list(ast.walk(function))
        names = {node.arg for node in nodes if isinstance(node, ast.arg)}
        names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        return cls(tuple(sorted(names)))


def swapped_operator(node: ast.AST, source: Source, scope: Scope) -> Edits:
    """Yield another arithmetic operator."""
    if isinstance(node, ast.BinOp) and not _is_text(node.left):
        yield from _tokens(node.left, node.right, source, ARITHMETIC)
    if isinstance(node, ast.AugAssign):
        yield from _tokens(node.target, node.value, source, ARITHMETIC)


def swapped_comparison(node: ast.AST, source: Source, scope: Scope) -> Edits:
    """Yield the opposite of a comparison, or the other one of `and` and `or`."""
    if isinstance(node, ast.Compare):
        for left, right in itertools.pairwise([node.left, *node.comparators]):
            yield from _tokens(left, right, source, COMPARISONS)
    if isinstance(node, ast.BoolOp):
        for left, right in itertools.pairwise(node.values):
            yield from _tokens(left, right, source, BOOLEAN)


def off_by_one(node: ast.AST, source: Source, scope: Scope) -> Edits:
    """Yield a bound or an index that is one too far, and a comparison that includes what it should not."""
    if isinstance(node, ast.Compare):
        for left, right in itertools.pairwise([node.left, *node.comparators]):
            yield from _tokens(left, right, source, BOUNDS)
        yield from _numbers(node.comparators)
    if isinstance(node, ast.Subscript):
        yield from _numbers([node.slice])
    if isinstance(node, ast.Slice):
        yield from _numbers([node.lower, node.upper])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("range", "islice"):
        yield from _numbers(node.args)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        yield from _numbers([node.left, node.right])


def condition(node: ast.AST, source: Source, scope: Scope) -> Edits:
    """Yield a condition that is negated, or a part of one that is dropped."""
    if isinstance(node, ast.If | ast.While | ast.IfExp) and (span := _span(node.test)):
        yield span, f"not ({source.text(span)})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and (span := _span(node)):
        inner = _span(node.operand)
        yield from [(span, f"({source.text(inner)})")] if inner else []
    if isinstance(node, ast.BoolOp):
        for left, right in itertools.pairwise(node.values):
            both, parts = _gap(left, right, outer=True), (_span(left), _span(right))
            yield from ((both, source.text(part)) for part in parts if both and part)


def wrong_variable(node: ast.AST, source: Source, scope: Scope) -> Edits:
    """Yield another name of the same function."""
    is_known = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in scope.names
    if is_known and (span := _span(node)):
        here = scope.names.index(source.text(span))
        others = [*scope.names[here + 1 :], *scope.names[:here]]
        yield from ((span, other) for other in others[:2] if other != "self")


def wrong_default(node: ast.AST, source: Source, scope: Scope) -> Edits:
    """Yield another default of a parameter."""
    if isinstance(node, ast.arguments):
        for default in [*node.defaults, *node.kw_defaults]:
            if isinstance(default, ast.Constant) and (span := _span(default)):
                yield from [(span, text) for text in [_other_constant(default.value)] if text]


def removed_call(node: ast.AST, source: Source, scope: Scope) -> Edits:
    """Yield a statement that does not call, and an expression without the call around it."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and (span := _span(node)):
        yield span, "pass"
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        span, inner = _span(node), _span(node.args[0])
        if span and inner and not isinstance(node.args[0], ast.Starred | ast.GeneratorExp):
            yield span, source.text(inner)


def swapped_arguments(node: ast.AST, source: Source, scope: Scope) -> Edits:
    """Yield a call with two neighbouring arguments the other way round."""
    if not isinstance(node, ast.Call) or any(isinstance(argument, ast.Starred) for argument in node.args):
        return
    for left, right in itertools.pairwise(node.args):
        first, second, gap = _span(left), _span(right), _gap(left, right)
        if first and second and gap:
            yield (
                Span(gap.line, first.begin, second.end),
                source.text(second) + source.text(gap) + source.text(first),
            )


def wrong_exception(node: ast.AST, source: Source, scope: Scope) -> Edits:
    """Yield another exception that is raised or caught."""
    named = node.type if isinstance(node, ast.ExceptHandler) else node.exc if isinstance(node, ast.Raise) else None
    if isinstance(named, ast.Call):
        named = named.func
    if (
        isinstance(named, ast.Name)
        and named.id not in ("NotImplementedError", "ImportError")
        and (span := _span(named))
    ):
        yield span, EXCEPTIONS.get(named.id, "RuntimeError")


KINDS: Mapping[str, Callable[[ast.AST, Source, Scope], Edits]] = {
    operator.__name__: operator
    for operator in (
        swapped_operator,
        swapped_comparison,
        off_by_one,
        condition,
        wrong_variable,
        wrong_default,
        removed_call,
        swapped_arguments,
        wrong_exception,
    )
}


def _span(node: ast.AST) -> Span | None:
    """Return where a node stands; None where that is more than a line."""
    assert isinstance(node, ast.expr | ast.stmt)
    if node.end_col_offset is None or node.end_lineno != node.lineno:
        return None
    return Span(node.lineno, node.col_offset, node.end_col_offset)


def _gap(left: ast.expr, right: ast.expr, outer: bool = False) -> Span | None:
    """Return what is between two nodes of one line, or with both of them (`outer`)."""
    first, second = _span(left), _span(right)
    if first is None or second is None or first.line != second.line:
        return None
    return Span(first.line, first.begin, second.end) if outer else Span(first.line, first.end, second.begin)


def _tokens(left: ast.expr, right: ast.expr, source: Source, table: Mapping[str, str]) -> Edits:
    """Yield another token in the place of the first between two nodes that the table knows."""
    gap = _gap(left, right)
    pattern = "|".join(re.escape(token) for token in sorted(table, key=len, reverse=True))
    found = re.search(pattern, source.text(gap)) if gap else None
    if gap and found:
        begin = gap.begin + len(source.text(gap)[: found.start()].encode())
        yield Span(gap.line, begin, begin + len(found[0])), table[found[0]]


def _numbers(nodes: list[ast.expr] | list[ast.expr | None]) -> Edits:
    for node in nodes:
        if isinstance(node, ast.Constant) and type(node.value) is int and (span := _span(node)):
            yield span, str(node.value + 1)


def _other_constant(value: object) -> str | None:
    match value:
        case bool():
            return str(not value)
        case int():
            return str(value + 1)
        case str() if value:
            return '""'
        case None:
            return "False"
        case _:
            return None


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant | ast.JoinedStr) and not isinstance(getattr(node, "value", ""), int | float)
