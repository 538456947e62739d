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
    """A tree of tokens under an empty root; nodes are numbered in the order of their insertion."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.weights: list[float] = []
        self.children: list[dict[int, int]] = [{}]  # of node -1, 0, 1, ...: shifted by one
        self.episodes: dict[tuple[int, int], None] = {}
        self._prompt: list[int] = []
        self._path: list[int] = []

    def __len__(self) -> int:
        return len(self.tokens)

    def num_new(self, row: Row) -> int:
        """Return how many tokens a row would add."""
        path = self._walk(row)
        return len(row.prompt_ids) + len(row.label_ids) - len(path)

    def insert(self, row: Row) -> None:
        """Add a row; where its label stands already, the weights add up."""
        path = self._walk(row)
        for token in [*row.prompt_ids, *row.label_ids][len(path) :]:
            path.append(self._add(token, path[-1] if path else -1))
        num_prompt = len(row.prompt_ids)
        for node, weight in zip(path[num_prompt:], row.weights, strict=True):
            self.weights[node] += weight
        self._prompt, self._path = list(row.prompt_ids), path[:num_prompt]
        self.episodes[row.episode] = None

    def example(self) -> Example:
        """Return the tree in depth-first order."""
        order, depths = self._depth_first()
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        parents = np.array(self.parents)[order]
        parent = np.where(parents < 0, -1, place[parents])
        end = np.arange(1, len(order) + 1)
        for i in range(len(order) - 1, -1, -1):
            if parent[i] >= 0:
                end[parent[i]] = max(end[parent[i]], end[i])
        return Example(
            input_ids=np.array(self.tokens)[order],
            position_ids=np.array(depths),
            parent=parent,
            subtree_end=end,
            ce_weight=np.array(self.weights)[order],
            episode_indices=tuple(self.episodes),
        )

    def _walk(self, row: Row) -> list[int]:
        """Return the nodes of a row that exist already, from the root."""
        ids, path = [*row.prompt_ids, *row.label_ids], []
        # The prompt of a turn extends the one before: compare it at once instead of walking it again.
        if self._prompt and ids[: len(self._prompt)] == self._prompt:
            path = list(self._path)
        for token in ids[len(path) :]:
            child = self.children[(path[-1] if path else -1) + 1].get(token)
            if child is None:
                break
            path.append(child)
        return path

    def _add(self, token: int, parent: int) -> int:
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.weights.append(0.0)
        self.children.append({})
        self.children[parent + 1][token] = node
        return node

    def _depth_first(self) -> tuple[list[int], list[int]]:
        order: list[int] = []
        depths: list[int] = []
        stack = [(node, 0) for node in reversed(self.children[0].values())]
        while stack:
            node, depth = stack.pop()
            order.append(node)
            depths.append(depth)
            stack.extend((child, depth + 1) for child in reversed(self.children[node + 1].values()))
        return order, depths
