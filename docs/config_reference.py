"""Writes the reference of all configuration keys, from the comments in conf/ and the docstrings of the targets.

This Sphinx extension replaces `PLACE` in the page `configuration` by the reference. It reads source files and imports
nothing of the package, so it needs no torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PLACE = "<!-- the reference of all keys -->"
NOT_GROUPS = ("schema", "_self_", "optional local")


class Key(NamedTuple):
    """One key of a file: its full name, its default as the file writes it, and what it means."""

    name: str
    default: str
    meaning: str


class Target(NamedTuple):
    """What a `_target_` builds: the first paragraph of its docstring, and what that says of each argument."""

    summary: str = ""
    arguments: dict[str, str] | None = None


class File(NamedTuple):
    """A file of conf/: its opening comment, its defaults list, its target and its keys."""

    comment: str
    defaults: list[Any]
    target: str
    keys: list[Key]


@cache
def read(path: Path) -> File:
    """Return what a file of conf/ says."""
    text = path.read_text()
    top = [line for line in text.splitlines() if line.strip()]
    head = [line.removeprefix("#").removeprefix(" ") for line in top[: first(line[0] != "#" for line in top)]]
    is_global = path.parent == CONF or "@package _global_" in head
    comment = "\n".join(line for line in head if not line.startswith("@package"))
    loaded = yaml.safe_load(text)
    keys = list(keys_of(yaml.compose(text), "" if is_global else f"{path.parent.name}.", text))
    if path.parent != CONF:
        names = [path.with_name(f"{entry}.yaml") for entry in loaded.get("defaults", []) if isinstance(entry, str)]
        parents = [name for name in names if name.exists()]
        keys = explained(keys, [CONF / "train.yaml"] if is_global else parents)
    return File(comment, loaded.get("defaults", []), loaded.get("_target_") or "", keys)


def explained(keys: list[Key], elsewhere: list[Path]) -> list[Key]:
    """Return keys that a file does not explain with the meaning that they have in the files it builds upon."""
    meanings = {key.name: key.meaning for path in elsewhere for key in read(path).keys}
    return [key._replace(meaning=key.meaning or meanings.get(key.name, "")) for key in keys]


def first(flags: Iterator[bool]) -> int | None:
    """Return the index of the first flag that is set, or None."""
    return next((index for index, flag in enumerate(flags) if flag), None)


def keys_of(node: yaml.MappingNode, prefix: str, text: str) -> Iterator[Key]:
    """Yield the keys of a mapping and of all mappings below it, in the order of the file."""
    values = {key.value: value for key, value in node.value}
    target = target_of(values["_target_"].value) if "_target_" in values else Target()
    for key, value in node.value:
        name = prefix + key.value
        if key.value in ("_target_", "_partial_", "defaults"):
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            if comment := comment_after(text, key):
                yield Key(name, "", comment)
            yield from keys_of(value, f"{name}.", text)
        elif getattr(value, "style", "") != "|":  # a template of Hydra's help is no setting
            default = text[value.start_mark.index : value.end_mark.index]
            yield Key(name, default, comment_after(text, value) or (target.arguments or {}).get(key.value, ""))


def comment_after(text: str, node: yaml.Node) -> str:
    """Return the comment on the line where a node ends."""
    found = re.match(r":?[ \t]*#[ \t]*(.*)", text[node.end_mark.index :])
    return found[1].strip() if found else ""


@cache
def target_of(path: str) -> Target:
    """Return what the docstring of a class or function says; nothing for one of another package.

    Raises:
        LookupError: the package has no such class or function.
    """
    module, _, name = path.rpartition(".")
    if not path.startswith("dagger_exp."):
        return Target()
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    named = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name]
    if not named:
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
                return target_of(f"{node.module}.{name}")
        raise LookupError(f"conf/ names {path}, and there is no such class or function")
    docstring = ast.get_docstring(named[0]) or ""
    return Target(" ".join(docstring.partition("\n\n")[0].split()), dict(arguments_in(docstring)))


def arguments_in(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield each argument of a docstring's section `Args:` with its description."""
    section = re.search(r"^Args:\n((?: +.*\n?)+)", docstring, re.MULTILINE)
    for name, said in re.findall(r"^ {4}(\w+): ((?:.|\n {5,})*)", section[1] if section else "", re.MULTILINE):
        yield name, " ".join(said.split()).removesuffix(".")


def reference() -> str:
    """Return the whole reference, as Markdown."""
    train = read(CONF / "train.yaml")
    choices = {key: value for entry in train.defaults if isinstance(entry, dict) for key, value in entry.items()}
    groups = [name for name in choices if name not in NOT_GROUPS]
    parts = ["## Keys of every run", *own_keys(train), "## `dagger-collect`", *option(read(CONF / "collect.yaml"))]
    for group in groups:
        parts += [f"## `{group}`", f"The default is `{group}={choices[group] or 'null'}`."]
        for path in sorted((CONF / group).glob("*.yaml")):
            parts += [f"### `{group}={path.stem}`", *option(read(path), group)]
    return "\n\n".join(parts)


def own_keys(train: File) -> Iterator[str]:
    """Yield the keys of train.yaml: those of the top in one table, then a table for each section."""
    yield table([key for key in train.keys if "." not in key.name and key.default])
    for section in dict.fromkeys(key.name.partition(".")[0] for key in train.keys if "." in key.name):
        yield f"### `{section}`"
        yield from (sentence(key.meaning) for key in train.keys if key.name == section)
        yield table([key for key in train.keys if key.name.startswith(f"{section}.")])


def option(file: File, group: str = "") -> Iterator[str]:
    """Yield the parts that describe one option of a group."""
    yield from paragraphs(file.comment)
    if file.target:
        yield f"`{file.target}`: {target_of(file.target).summary}".removesuffix(": ")
    chosen = [item for entry in file.defaults if isinstance(entry, dict) for item in entry.items()]
    if chosen:
        names = (f"`{name.removeprefix('override ').strip('/')}={value}`" for name, value in chosen)
        yield f"Chooses {', '.join(names)}."
    if parents := [entry for entry in file.defaults if isinstance(entry, str) and group and entry != "_self_"]:
        yield f"Has all keys of `{group}={parents[0]}`; these differ:"
    if file.keys:
        yield table(file.keys)


def paragraphs(comment: str) -> Iterator[str]:
    """Yield a comment's text, and what it indents as blocks of code."""
    for is_code, lines in runs(comment.splitlines()):
        yield "```text\n" + "\n".join(line.strip() for line in lines) + "\n```" if is_code else " ".join(lines)


def runs(lines: list[str]) -> Iterator[tuple[bool, list[str]]]:
    """Yield the lines in runs of text and of code, which is indented."""
    block: list[str] = []
    for line in lines:
        if block and line.startswith(" ") != block[0].startswith(" "):
            yield block[0].startswith(" "), block
            block = []
        block.append(line)
    if block:
        yield block[0].startswith(" "), block


def table(keys: list[Key]) -> str:
    """Return a table of keys."""
    cells = [(f"`{key.name}`", f"`{key.default}`" if key.default else "", key.meaning) for key in keys]
    rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in cells]
    return "\n".join(["| Key | Default | Meaning |", "|---|---|---|", *rows])


def sentence(text: str) -> str:
    """Return a comment as a sentence."""
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def setup(app: Any) -> dict[str, bool]:
    """Put the reference into its page when Sphinx reads that."""
    app.connect("source-read", insert)
    return {"parallel_read_safe": True}


def insert(_app: Any, docname: str, source: list[str]) -> None:
    """Put the reference into the page `configuration`."""
    if docname == "configuration":
        source[0] = source[0].replace(PLACE, reference())
