"""Ask: one drafter's turn at a row's tree, and whose the nodes are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mmspec.tree import TokenTree

Probe = Literal["doubted", "paused"]  # asked though it is not believed to pay; or though it has
# lost what it may


@dataclass(slots=True)
class Ask:
    """One drafter's turn at a row's tree."""

    drafter: str
    standing: int  # of the tree that it was asked beside
    after: TokenTree
    seconds: float  # that it took
    probe: Probe | None = None


def owners_of(tree: TokenTree, asked: Sequence[Ask]) -> list[str]:
    """(nodes,) who was first to propose each node of the row's tree."""
    owners = [asked[-1].drafter] * tree.num_nodes
    for ask in reversed(asked[:-1]):  # of the last one is what nobody proposed before
        images = [0]  # where each node lies in the tree before the next one was asked
        for node in range(1, tree.num_nodes):
            parent = images[tree.parents[node]]
            image = ask.after.child(parent, tree.tokens[node]) if parent >= 0 else None
            images.append(-1 if image is None else image)
            if image is not None:
                owners[node] = ask.drafter
    return owners
