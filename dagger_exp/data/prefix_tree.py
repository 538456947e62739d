"""Packing: all labels of an episode in one sequence, each prefix once.

A row is a prompt and the label that follows it. Rows are inserted into a tree of tokens: what they share (an executed
trajectory, mostly) is stored and computed once, a label that differs from what was executed is a branch. Written down
depth first, token i may see token j exactly when ``j <= i < subtree_end[j]``, so one attention mask makes every row
see its own prefix only, and the gradient is that of one row per label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dagger_exp.errors import DataError
from dagger_exp.types import Example


@dataclass(frozen=True, slots=True)
class Row:
    """One label in its context; `weights` has one entry per token of `label_ids`."""

    prompt_ids: Sequence[int]
    label_ids: Sequence[int]
    weights: Sequence[float]
    episode: tuple[int, int] = (0, 0)


def grow(rows: Iterable[Row], max_tokens: int) -> list[Example]:
    """Return the trees that hold the rows, in order, none longer than `max_tokens` unless a single row is.

    A tree that would become too long is cut: the next one repeats only the prefix that its rows need. Nothing is
    dropped.

    Raises:
        DataError: a row has no prompt, so that nothing predicts its first token.
    """
    examples: list[Example] = []
    tree = Tree()
    for row in rows:
        if len(tree) and len(tree) + tree.num_new(row) > max_tokens:
            examples.append(tree.example())
            tree = Tree()
        tree.insert(row)
    return [*examples, tree.example()] if len(tree) else examples


class Tree:
    """A tree of tokens under an empty root; nodes are numbered in the order of their insertion, the root is -1."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.weights: list[float] = []
        self.children: dict[tuple[int, int], int] = {}  # by (parent, token)
        self.episodes: dict[tuple[int, int], None] = {}
        self._prompt: list[int] = []
        self._path: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def num_new(self, row: Row) -> int:
        """Return how many tokens a row would add."""
        return len(row.prompt_ids) + len(row.label_ids) - len(self._walk(row))

    def insert(self, row: Row) -> None:
        """Add a row; where its label stands already, the weights add up."""
        if not row.prompt_ids:
            raise DataError(f"episode {row.episode} has a label without a prompt: nothing predicts its first token.")
        path, num_prompt = self._walk(row), len(row.prompt_ids)
        path += self._add([*row.prompt_ids, *row.label_ids][len(path) :], path[-1] if path else -1)
        for node, weight in zip(path[num_prompt:], row.weights, strict=True):
            self.weights[node] += weight
        self._prompt, self._path = list(row.prompt_ids), path[:num_prompt]
        self.episodes[row.episode] = None

    def example(self) -> Example:
        """Return the tree in depth-first order."""
        place, end, depth = self._lay_out()
        order, parents = np.argsort(place), np.array(self.parents)
        return Example(
            input_ids=np.array(self.tokens)[order],
            position_ids=depth[order],
            parent=np.where(parents < 0, -1, place[parents])[order],
            subtree_end=end[order],
            ce_weight=np.array(self.weights)[order],
            episode_indices=tuple(self.episodes),
        )

    def _walk(self, row: Row) -> list[int]:
        """Return the nodes of a row that exist already, from the root."""
        ids, path = [*row.prompt_ids, *row.label_ids], []
        # The prompt of a turn extends the one before: compare it at once instead of walking it again.
        if self._prompt and ids[: len(self._prompt)] == self._prompt:
            path = list(self._path)
        node: int | None = path[-1] if path else -1
        for token in ids[len(path) :]:
            if (node := self.children.get((node, token))) is None:
                break
            path.append(node)
        return path

    def _add(self, tokens: Sequence[int], parent: int) -> range:
        """Add a chain of new nodes below a node, and return them."""
        nodes = range(len(self), len(self) + len(tokens))
        parents = [parent, *nodes][: len(nodes)]
        self.children.update(zip(zip(parents, tokens, strict=True), nodes, strict=True))
        self.tokens += tokens
        self.parents += parents
        self.weights += [0.0] * len(nodes)
        return nodes

    def _lay_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the depth-first place, the place after the last descendant and the depth of each node."""
        num_nodes = len(self)
        size, end, depth = [1] * (num_nodes + 1), [0] * (num_nodes + 1), [-1] * (num_nodes + 1)  # [-1] is the root
        for node in reversed(range(num_nodes)):  # a child has a higher number than its parent
            size[self.parents[node]] += size[node]
        for node, parent in enumerate(self.parents):
            depth[node] = depth[parent] + 1
            end[node] = end[parent] + 1  # so far; it moves on by the size of each child
            end[parent] += size[node]
        ends = np.array(end[:-1])
        return ends - np.array(size[:-1]), ends, np.array(depth[:-1])
