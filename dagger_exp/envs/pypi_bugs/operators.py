"""What can be wrong in a node of a syntax tree? A function per kind of bug yields places, and what to put there."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

UNTOUCHED = ("NotImplementedError", "ImportError")
"""What is said with these is seldom tested."""


class Span(NamedTuple):
    """A part of a line: its number from 1, and columns in bytes, as syntax trees count them."""

    line: int
    begin: int
    end: int


Edits = Iterator[tuple[Span, str]]


@dataclass(frozen=True, slots=True)
class Source:
    """A file, seen from within one of its functions.

    Args:
        lines: of the file.
        names: that belong to the function, sorted; none outside of functions.
    """

    lines: tuple[bytes, ...]
    names: tuple[str, ...] = ()

    def within(self, function: ast.FunctionDef | ast.AsyncFunctionDef) -> Source:
        """Return the file as a function sees it: with its parameters and the names that it assigns."""
        nodes = list(ast.walk(function))
        names = {node.arg for node in nodes if isinstance(node, ast.arg)}
        names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        return replace(self, names=tuple(sorted(names)))

    def line(self, number: int) -> str:
        """Return a line, counted from 1."""
        return self.lines[number - 1].decode()

    def text(self, span: Span) -> str:
        """Return what stands at a place."""
        return self.lines[span.line - 1][span.begin : span.end].decode()

    def replaced(self, span: Span, text: str) -> str:
        """Return the line of a place with another text there."""
        line = self.lines[span.line - 1]
        return (line[: span.begin] + text.encode() + line[span.end :]).decode()

    def span(self, node: ast.expr | ast.stmt) -> Span | None:
        """Return where a node stands; None where that is more than a line."""
        if node.end_col_offset is None or node.end_lineno != node.lineno:
            return None
        return Span(node.lineno, node.col_offset, node.end_col_offset)

    def gap(self, left: ast.expr, right: ast.expr) -> Span | None:
        """Return what is between two nodes; None where they are not on one line."""
        first, second = self.span(left), self.span(right)
        if first is None or second is None or first.line != second.line:
            return None
        return Span(first.line, first.end, second.begin)


def swapped_operator(node: ast.AST, source: Source) -> Edits:
    """Yield another arithmetic operator."""
    if isinstance(node, ast.BinOp) and not _is_text(node.left):
        yield from _tokens(source, node.left, node.right, ARITHMETIC)
    if isinstance(node, ast.AugAssign):
        yield from _tokens(source, node.target, node.value, ARITHMETIC)


def swapped_comparison(node: ast.AST, source: Source) -> Edits:
    """Yield the opposite of a comparison, or the other one of `and` and `or`."""
    if isinstance(node, ast.Compare):
        for left, right in itertools.pairwise([node.left, *node.comparators]):
            yield from _tokens(source, left, right, COMPARISONS)
    if isinstance(node, ast.BoolOp):
        for left, right in itertools.pairwise(node.values):
            yield from _tokens(source, left, right, BOOLEAN)


def off_by_one(node: ast.AST, source: Source) -> Edits:
    """Yield a bound or an index that is one too far, and a comparison that includes what it should not."""
    if isinstance(node, ast.Compare):
        for left, right in itertools.pairwise([node.left, *node.comparators]):
            yield from _tokens(source, left, right, BOUNDS)
        yield from _numbers(source, node.comparators)
    if isinstance(node, ast.Subscript):
        yield from _numbers(source, [node.slice])
    if isinstance(node, ast.Slice):
        yield from _numbers(source, [node.lower, node.upper])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("range", "islice"):
        yield from _numbers(source, node.args)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        yield from _numbers(source, [node.left, node.right])


def condition(node: ast.AST, source: Source) -> Edits:
    """Yield a condition that is negated, or a part of one that is dropped."""
    if isinstance(node, ast.If | ast.While | ast.IfExp) and (span := source.span(node.test)):
        yield span, f"not ({source.text(span)})"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and (span := source.span(node)):
        inner = source.span(node.operand)
        yield from [(span, f"({source.text(inner)})")] if inner else []
    if isinstance(node, ast.BoolOp):
        for left, right in itertools.pairwise(node.values):
            first, second = source.span(left), source.span(right)
            if first and second and first.line == second.line:
                both = Span(first.line, first.begin, second.end)
                yield from ((both, source.text(part)) for part in (first, second))


def wrong_variable(node: ast.AST, source: Source) -> Edits:
    """Yield another name of the same function."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in source.names:
        here, span = source.names.index(node.id), source.span(node)
        others = [*source.names[here + 1 :], *source.names[:here]][:2]
        yield from ((span, other) for other in others if span and other != "self")


def wrong_default(node: ast.AST, source: Source) -> Edits:
    """Yield another default of a parameter."""
    if isinstance(node, ast.arguments):
        for default in [*node.defaults, *node.kw_defaults]:
            if isinstance(default, ast.Constant) and (span := source.span(default)):
                yield from [(span, text) for text in [_other_constant(default.value)] if text]


def removed_call(node: ast.AST, source: Source) -> Edits:
    """Yield a statement that does not call, and an expression without the call around it."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and (span := source.span(node)):
        yield span, "pass"
    if isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords:
        span, inner = source.span(node), source.span(node.args[0])
        if span and inner and not isinstance(node.args[0], ast.Starred | ast.GeneratorExp):
            yield span, source.text(inner)


def swapped_arguments(node: ast.AST, source: Source) -> Edits:
    """Yield a call with two neighbouring arguments the other way round."""
    if not isinstance(node, ast.Call) or any(isinstance(argument, ast.Starred) for argument in node.args):
        return
    for left, right in itertools.pairwise(node.args):
        first, second, gap = source.span(left), source.span(right), source.gap(left, right)
        if first and second and gap:
            yield (
                Span(gap.line, first.begin, second.end),
                source.text(second) + source.text(gap) + source.text(first),
            )


def wrong_exception(node: ast.AST, source: Source) -> Edits:
    """Yield another exception that is raised or caught."""
    named = node.type if isinstance(node, ast.ExceptHandler) else node.exc if isinstance(node, ast.Raise) else None
    if isinstance(named, ast.Call):
        named = named.func
    if (
        isinstance(named, ast.Name)
        and named.id not in ("NotImplementedError", "ImportError")
        and (span := source.span(named))
    ):
        yield span, EXCEPTIONS.get(named.id, "RuntimeError")


KINDS: Mapping[str, Callable[[ast.AST, Source], Edits]] = {
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


def _tokens(source: Source, left: ast.expr, right: ast.expr, table: Mapping[str, str]) -> Edits:
    """Yield another token in the place of the first between two nodes that the table knows."""
    gap = source.gap(left, right)
    pattern = "|".join(re.escape(token) for token in sorted(table, key=len, reverse=True))
    found = re.search(pattern, source.text(gap)) if gap else None
    if gap and found:
        begin = gap.begin + len(source.text(gap)[: found.start()].encode())
        yield Span(gap.line, begin, begin + len(found[0])), table[found[0]]


def _numbers(source: Source, nodes: Sequence[ast.expr | None]) -> Edits:
    for node in nodes:
        if isinstance(node, ast.Constant) and type(node.value) is int and (span := source.span(node)):
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
