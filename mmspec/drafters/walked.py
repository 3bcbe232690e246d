"""What the target's choices say of a proposed tree, whatever of it was scored."""

from collections.abc import Hashable, Iterator, Sequence

from mmspec.calibration import Calibration
from mmspec.tree import TokenTree


def walked(tree: TokenTree, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(node, token): what the target chose behind each node that its `tokens` came by, from node 0
    to the first choice that is no child."""
    node: int | None = 0
    for token in tokens:
        if node is None:
            return
        yield node, token
        node = tree.child(node, token)


def held_path(written: TokenTree, tokens: Sequence[int]) -> list[int]:
    """The nodes of `written`, node 0 first, that hold `tokens`, as far as they do."""
    path: list[int] = []
    for token in tokens:
        node = written.child(path[-1], token) if path else 0
        if node is None or written.tokens[node] != token:
            break
        path.append(node)
    return path


_FIRST = "first"  # the bucket of all first children
_BELIEVED = 0.8  # of them, before anything is known


def first_rate(calibration: Calibration) -> float:
    """How often a node's first child was chosen, of those that `learn_choices` was told of."""
    return calibration.rate(_FIRST, _BELIEVED)


def learn_choices(
    calibration: Calibration,
    tree: TokenTree,
    buckets: Sequence[Hashable],
    tokens: Sequence[int],
) -> None:
    """Tells of every child on the way whether it was chosen; `buckets` (nodes,), None for a node
    that says nothing."""
    for node, token in walked(tree, tokens):
        children = tree.children(node)
        if children and buckets[children[0]] is not None:
            calibration.observe(_FIRST, tree.tokens[children[0]] == token)
        for child in children:
            if buckets[child] is not None:
                calibration.observe(buckets[child], tree.tokens[child] == token)
