"""Run: one proposal of one request on its way: lower tree, middle verdict, lower tree, ..."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmspec.drafters.growing.growth import Branching, Candidates, Child
from mmspec.drafters.token_view import TokenView
from mmspec.state import Placement, Scores
from mmspec.tree import TokenTree
from mmspec.verify.coupled import walk

if TYPE_CHECKING:
    from mmspec.drafters.cascade.session import CascadeSession


class Run:
    """The middle level chooses: what the target over its view would say under the request's noise,
    or a draw from its q. So the chain is the middle level's own sample path, whatever the lower
    level proposed.

    Behind the view lie the tokens accepted so far, as committed ones do; `take_back` forgets them.
    """

    def __init__(
        self,
        session: "CascadeSession",
        tokens: Sequence[int],
        placement: Placement,
        branching: Branching,
        *,
        max_depth: int,
        max_forwards: int | None,
        min_confidence: float,
    ) -> None:
        """`tokens`: the request's text. `max_forwards` None: as many as `max_depth` takes."""
        self.session = session
        self.view = session.middle.view
        self.tokens = tokens
        self.placement = placement
        self.children: list[Child] = []  # the chain
        self._chain: list[int] = []  # its tokens
        self.text = TokenView(tokens, self._chain)  # the request's, with the chain
        self._drawn_from: list[Tensor] = []  # (vocab,) for each token of the chain
        self._branching = branching
        self._max_depth = max_depth
        self._max_forwards = max_forwards
        self._min_confidence = min_confidence
        self._likely = 1.0
        self.num_forwards = 0
        self._is_out = False
        self._base = self.view.length(placement.row)

    @property
    def room(self) -> int:
        """Tokens that the chain may still get."""
        return self._max_depth - len(self.children)

    @property
    def may_ask(self) -> bool:
        """Whether the lower level can follow the text: one that cannot take back is asked once a
        proposal, before anything is uncertain."""
        return self.session.revisable is not None or not self.children

    @property
    def is_done(self) -> bool:
        return self._is_out or self.room <= 0 or self._likely < self._min_confidence

    # A forward over the view

    def find(self, tree: TokenTree, scores: Scores) -> Candidates:
        """What may follow each node of a lower tree. Waits for no device."""
        depths = [len(self.children) + depth + 1 for depth in tree.depths]
        # Siblings draw alike: the walk comes by one of them at most.
        return self._branching.find(scores.logits, depths, [depth - 1 for depth in depths])

    def verify(
        self,
        tree: TokenTree,
        scores: Scores,
        found: Candidates,
        tokens: list[list[float]],
        beliefs: list[list[float]],
    ) -> None:
        """Takes of a lower tree what the middle level says too, and one token more. `tokens` and
        `beliefs` are the values of what was `found`."""

        def choose(node: int) -> int:
            (child,) = self._branching.children([int(t) for t in tokens[node]], beliefs[node])
            self.children.append(child)
            self._chain.append(child.token)
            self._likely *= child.rate
            if found.q is not None:
                self._drawn_from.append(found.q[node])
            return child.token

        verdict = walk(tree, choose, lambda: self.is_done)
        self.view.commit({self.placement.row: verdict.path})
        if self.session.revisable is not None:
            self.session.revisable.observe(tree, verdict, scores)
        self.num_forwards += 1
        self._is_out = self.num_forwards == self._max_forwards

    def take_back(self) -> None:
        """The view and the lower level are where they were, at the request's own text."""
        self.view.truncate(self.placement.row, self._base)
        if self.session.revisable is not None:
            self.session.revisable.take_back(len(self.tokens))

    def q(self, vocab_size: int) -> Tensor:
        """(nodes, vocab_size) what each node's child was drawn from; zeros for the last."""
        drawn = torch.stack(self._drawn_from)
        q = drawn.new_zeros(len(self.children) + 1, vocab_size)
        q[:-1, : drawn.shape[1]] = drawn
        return q
