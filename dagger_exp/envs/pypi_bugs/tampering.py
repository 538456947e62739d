"""Does an edit reach for more than the package? What a repair never needs is refused before its code runs.

The package's code runs in the process that grades it, so an edit could try to write the report itself. It is refused
where it imports, names or reaches into anything that can lead there and that the package's own file does not use as
often: modules, the interpreter's insides (dunder names, frames), and built-in functions that turn texts into code,
names or files. A repair that truly needs one of these is refused with it.

What this does not cover: code that is plain and wrong on purpose. An edit may hold the answers to tests that it has
seen (half of the failing tests are hidden for that reason), and, where the package itself defines how its objects
compare, may change that comparison. It may also use what the package itself already reached for, as often as it does.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

MAX_MORE_BYTES = 1 << 16
"""That a repair may add to a file; without a bound, its syntax tree would fill the memory of the run."""
RISKY = frozenset(
    "__import__ _pytest atexit attrgetter breakpoint builtins codecs compile ctypes delattr eval exec"
    " exit faulthandler gc getattr globals help import_module importlib input inspect io locals marshal"
    " methodcaller modules open operator os pathlib pickle pytest quit runpy setattr setprofile settrace"
    " shutil signal site subprocess sys tempfile threading type types unittest vars warnings".split()
)
INSIDES = re.compile(r"__\w+__|(?:ag|co|cr|f|gi|tb)_[a-z]+")


def tampering(submitted: bytes, right: bytes) -> str:
    """Return what a file reaches for beyond the package's own, or why it cannot be told; nothing if it is innocent.

    Args:
        submitted: what the agent leaves.
        right: the file of the package.
    """
    if submitted == right:
        return ""
    if len(submitted) > len(right) + MAX_MORE_BYTES:
        return "its size"
    try:
        tree = ast.parse(submitted)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the Python that grades may read what ours cannot
        return "code that cannot be parsed"
    more = Counter(_reached(tree)) - Counter(_reached(ast.parse(right)))
    return ", ".join(sorted(more))


def _reached(tree: ast.AST) -> Iterator[str]:
    """Yield every import, and every risky name as often as it stands there."""
    for node in ast.walk(tree):
        match node:
            case ast.Import() | ast.ImportFrom():
                yield from (f"import of {_module(node)}{alias.name}" for alias in node.names)
            case ast.Constant(value=str(text)):
                yield from (word for word in re.findall(r"\w+", text) if re.fullmatch(r"__\w+__", word))
            case _:
                values = [value for _, value in ast.iter_fields(node)]
                names = [name for value in values for name in (value if isinstance(value, list) else [value])]
                yield from (name for name in names if isinstance(name, str) and _is_risky(name))


def _module(node: ast.Import | ast.ImportFrom) -> str:
    return f"{'.' * node.level}{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""


def _is_risky(name: str) -> bool:
    return name in RISKY or INSIDES.fullmatch(name) is not None
