"""What the target's choices say of a proposed tree, whatever of it was scored."""

from collections.abc import Iterator, Sequence

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
