"""What tools are there? The JSON schemas that a chat template shows and that calls are held against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tool(
    name: str, description: str, required: tuple[str, ...] = (), **properties: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the schema of a tool; arguments that are not required may be left out."""
    parameters = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def text(description: str, **more: Any) -> dict[str, Any]:
    """Return the schema of a text."""
    return {"type": "string", "description": description, **more}


EXECUTE_BASH = tool(
    "execute_bash",
    "Run a script in a new shell in /work; you see its output and exit code.",
    ("command",),
    command=text("The script."),
)
EDITOR_COMMANDS = ("view", "create", "str_replace", "insert", "undo_edit")
STR_REPLACE_EDITOR = tool(
    "str_replace_editor",
    "View, create and edit text files below /work. view shows a file with line numbers, or lists a folder; create "
    "writes a new file; str_replace replaces the only place where old_str stands; insert puts new_str after a line; "
    "undo_edit takes the last edit of a file back.",
    ("command", "path"),
    command=text("What to do.", enum=list(EDITOR_COMMANDS)),
    path=text("Of the file or folder, as /work/a.py."),
    file_text=text("For create: the whole file."),
    old_str=text("For str_replace: what stands there, with its white space."),
    new_str=text("For str_replace and insert: what shall stand there; without it old_str is removed."),
    insert_line={"type": "integer", "description": "For insert: the line after which it goes; 0 is the top."},
    view_range={
        "type": "array",
        "items": {"type": "integer"},
        "description": "For view: the first and the last line, as [11, 20]; -1 is the end.",
    },
)
FINISH = tool("finish", "Say that the task is done; nothing can be done after it.")
