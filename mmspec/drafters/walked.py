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


def learn_choices(
    calibration: Calibration,
    tree: TokenTree,
    buckets: Sequence[Hashable],
    tokens: Sequence[int],
) -> None:
    """Tells of every child on the way whether it was chosen; `buckets` (nodes,), None for a node
    that says nothing."""
    for node, token in walked(tree, tokens):
        for child in tree.children(node):
            if buckets[child] is not None:
                calibration.observe(buckets[child], tree.tokens[child] == token)
