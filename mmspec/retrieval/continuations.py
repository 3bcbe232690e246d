"""Continuations found in several places -> one trie, the best supported path first."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


class Continuation(NamedTuple):
    """Tokens that followed a match of `match_length` tokens somewhere."""

    tokens: list[int]
    match_length: int


@dataclass
class _Node:
    weight: float = 0.0
    match_length: int = 0
    count: int = 0
    children: dict[int, "_Node"] = field(default_factory=dict)


class TrieNode(NamedTuple):
    """A token that followed, after the path to its parent."""

    token: int  # -1 in node 0, the place that all continuations follow
    parent: int  # index of the parent; -1 for node 0
    share: float  # of the siblings' weight, in (0, 1]
    match_length: int  # longest match that supports the node
    num_places: int  # that support the node


def build_trie(continuations: Iterable[Continuation]) -> tuple[TrieNode, ...]:
    """Merges continuations into nodes in depth-first order, the heaviest child first.

    A place weighs (match length)^2: a longer match knows more of the
    context, and several shorter ones that agree still count.
    """
    root = _Node()
    for tokens, match_length in continuations:
        node = root
        for token in tokens:
            node = node.children.setdefault(token, _Node())
            node.weight += match_length**2
            node.match_length = max(node.match_length, match_length)
            node.count += 1
    nodes = [TrieNode(token=-1, parent=-1, share=1.0, match_length=0, num_places=0)]
    pending = _children(0, root)
    while pending:
        parent, token, share, node = pending.pop()
        nodes.append(TrieNode(token, parent, share, node.match_length, node.count))
        pending.extend(_children(len(nodes) - 1, node))
    return tuple(nodes)


def _children(index: int, node: _Node) -> list[tuple[int, int, float, _Node]]:
    """(parent, token, share, child), the heaviest last, for it is taken off the stack first;
    among equals the one that was added first."""
    total = sum(child.weight for child in node.children.values())
    ranked = sorted(reversed(node.children.items()), key=lambda item: item[1].weight)
    return [(index, token, child.weight / total, child) for token, child in ranked]
