"""What can be read off the syntax of a chat template?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, TemplateError, meta, nodes

SYNTAX = Environment()  # noqa: S701  nothing is rendered with it
"""Reads what a template is made of."""
SYNTAX.globals.clear()  # a template may give their names to values of its own


def tells_each_alone(template: Any) -> bool:
    """Return whether a chat template is one loop that writes each message without a look at any other or at its place.

    Then the text of more messages is the text of fewer, with theirs at its end. It is read off the syntax, and only
    what cannot be otherwise counts: outside of the loop nothing knows of messages, and inside it no name but that of
    the message has a value that another pass of the loop could have changed.
    """
    try:
        body = SYNTAX.parse(str(template)).body
    except TemplateError:  # as for a `break`, which is of an extension
        return False
    loops = [node for node in body if isinstance(node, nodes.For)]
    rest = [node for node in body if isinstance(node, nodes.Output | nodes.If | nodes.Assign)]
    rest = [node for node in rest if not node.find(nodes.Macro)]  # one may change what stands outside of the loop
    if len(loops) != 1 or len(body) != 1 + len(rest) or "messages" in _names(rest):
        return False
    loop = loops[0]
    over = isinstance(loop.iter, nodes.Name) and loop.iter.name == "messages" and isinstance(loop.target, nodes.Name)
    changeable = {name.name for node in rest for name in node.find_all(nodes.Name) if name.ctx == "store"}
    return over and not (loop.test or loop.else_ or (changeable | {"loop", "messages"}) & _names(loop.body))


def _names(body: Sequence[nodes.Node]) -> set[str]:
    """Return the names in a piece of a template that get their value outside of it."""
    piece = nodes.Template(list(body), lineno=1)
    piece.set_environment(SYNTAX)
    return meta.find_undeclared_variables(piece)
