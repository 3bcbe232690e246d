"""The whole trie of some continuations, built at once: what the lazy one must agree with."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nlargest
from typing import NamedTuple

from mmspec.retrieval.continuations import MAX_PLACES, Continuation


@dataclass
class _Node:
    weight: float = 0.0
    match_length: int = 0
    count: int = 0
    source: str = ""
    heaviest: float = 0.0
    distance: float | None = None
    children: dict[int, "_Node"] = field(default_factory=dict)


class TrieNode(NamedTuple):
    """A token that followed, after the path to its parent."""

    token: int  # -1 in node 0, the place that all continuations follow
    parent: int  # index of the parent; -1 for node 0
    share: float  # of the siblings' weight, in (0, 1]
    match_length: int  # longest match that supports the node
    num_places: int  # that support the node
    source: str = "online"  # of the heaviest place that supports it
    distance: float | None = None  # the least of the places that support it by hidden states


def build_trie(continuations: Iterable[Continuation]) -> tuple[TrieNode, ...]:
    """Merges continuations into nodes in depth-first order, the heaviest child first.

    Of more than `MAX_PLACES` continuations the heaviest count, among equals the first.
    """
    weighted = [(one.weight(), one) for one in continuations]
    if len(weighted) > MAX_PLACES:
        weighted = nlargest(MAX_PLACES, weighted, key=lambda pair: pair[0])
    root = _Node()
    for weight, continuation in weighted:
        _add(root, continuation, weight)
    nodes = [TrieNode(token=-1, parent=-1, share=1.0, match_length=0, num_places=0)]
    pending = _children(0, root)
    while pending:
        parent, token, share, node = pending.pop()
        nodes.append(
            TrieNode(
                token, parent, share, node.match_length, node.count, node.source, node.distance
            )
        )
        pending.extend(_children(len(nodes) - 1, node))
    return tuple(nodes)


def _add(node: _Node, continuation: Continuation, weight: float) -> None:
    tokens, match_length, source, distance, _ = continuation
    for token in tokens:
        child = node.children.get(token)
        if child is None:
            child = node.children[token] = _Node()
        node = child
        node.weight += weight
        node.count += 1
        if match_length > node.match_length:
            node.match_length = match_length
        if weight > node.heaviest:
            node.heaviest, node.source = weight, source
        if distance is not None:
            node.distance = distance if node.distance is None else min(node.distance, distance)


def _children(index: int, node: _Node) -> list[tuple[int, int, float, _Node]]:
    """(parent, token, share, child), the heaviest last, for it is taken off the stack first;
    among equals the one that was added first."""
    total = sum(child.weight for child in node.children.values())
    ranked = sorted(reversed(node.children.items()), key=lambda item: item[1].weight)
    return [(index, token, child.weight / total, child) for token, child in ranked]
