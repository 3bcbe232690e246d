"""One request's lookahead: n-grams that were found and the window, as one tree."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from mmspec.calibration import Calibration
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.lookahead.harvest import Harvest
from mmspec.drafters.lookahead.pool import NgramPool
from mmspec.drafters.lookahead.trie import Guessed, NgramTrie
from mmspec.drafters.lookahead.window import Window
from mmspec.drafters.own_text import prompt_tokens
from mmspec.drafters.walked import held_path
from mmspec.reads import read
from mmspec.state import Preparation, Prices, Prompt, Scores, Verdict
from mmspec.tree import TokenTree
from mmspec.uploads import upload

if TYPE_CHECKING:
    from mmspec.drafters.lookahead.drafter import Lookahead

_MANY = 64  # tokens from which on reading them is no part of a proposal
_TOKEN_S = 2e-6


@dataclass(frozen=True)
class _Unsettled:
    """What the target said of the window's columns, before it is read."""

    columns: tuple[int, ...]  # that were scored
    logits: Tensor  # (columns, vocab) at the end of each
    places: tuple[int, ...]  # (columns,) index in the text of the token that follows


class LookaheadSession:
    """The window stands for the text as it was at the newest proposal."""

    def __init__(self, drafter: "Lookahead", prompt: Prompt, guide: DraftGuide) -> None:
        self._drafter = drafter
        self._guide = guide
        self._text = prompt_tokens(prompt)  # separators in place of its media
        self._num_read = 0 if drafter.pool_from_prompt else len(self._text)
        self._random = random.Random(guide.seed)
        self._calibration = Calibration()
        self._harvest = Harvest()
        self._proposal: Guessed | None = None
        self.prices: Prices | None = None
        self._unsettled: _Unsettled | None = None
        self._choices: list[int | None] = []  # of the columns, at the newest step it was scored in
        self._num_tokens = prompt.num_tokens  # of the text that the window stands for
        self._num_chosen = 0  # in the newest step it was scored in
        self.pool = NgramPool(drafter.guess_set)
        self.window = Window(drafter.window, drafter.ngram - 1, self._piece)

    # The drafter's calls

    def preparation(self, num_tokens: int) -> Preparation | None:
        """The reading of many tokens, as a prompt has them."""
        late = num_tokens - self._num_read if self._drafter.pool_from_prompt else 0
        return Preparation(seconds=_TOKEN_S * late) if late >= _MANY else None

    def prepare(self, tokens: Sequence[int]) -> None:
        self._read(tokens)

    @property
    def least_s(self) -> float | None:
        return None  # it takes as long with a window as without

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        self._read(tokens)
        self._move(len(tokens))
        self.window.node0 = tokens[-1]
        trie = NgramTrie(tokens[-1], self._drafter.name, self._calibration)
        levels = self._drafter.ngram - 1
        most = max(budget // 2, min(budget, levels))
        for rank, guess in enumerate(self.pool.after(tokens[-1])):
            tail = guess.tail[: max(most - trie.num_drafted, 0)]
            trie.add_guess(tail, rank=rank, was_read=guess.was_read)
        if self._harvest.pays(self.prices, nodes=levels):
            # A column is `levels` nodes, the first one less.
            columns = max(budget - trie.num_drafted + 1, 0) // levels
            trie.add_window(self.window.paths(columns))
        self._proposal = trie.proposal
        return self._proposal.tree

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        """`tree` may lack the window's last columns, and its nodes may stand elsewhere: they are
        found by their paths."""
        if self._proposal is None:
            return
        proposal, self._proposal = self._proposal, None
        proposal.teach(self._calibration, verdict.tokens)
        self._num_chosen = len(verdict.tokens)
        if scores.choice is not None:
            self._choices = [scores.choice(path) for path in proposal.paths]
            columns = sum(choice is not None for choice in self._choices)
        else:
            columns = self._choose_later(tree, proposal, scores)
        self._harvest.observe(_num_found(proposal, verdict), columns)

    def _choose_later(self, tree: TokenTree, proposal: Guessed, scores: Scores) -> int:
        """What the target says of the window was not found with the step's own choices. The time
        that it takes is the next proposal's, if there is one. Returns the columns scored."""
        ends = [_node(tree, path) for path in proposal.paths]
        nodes = [node for node in ends if node is not None]
        if nodes:
            self._choices = [None] * len(ends)
            self._unsettled = _Unsettled(
                tuple(column for column, node in enumerate(ends) if node is not None),
                scores.logits.index_select(0, upload(nodes, scores.logits.device)),
                tuple(self._num_tokens + tree.depths[node] for node in nodes),
            )
        return len(nodes)

    def close(self) -> None:
        pass

    # The text and the window

    def _read(self, tokens: Sequence[int]) -> None:
        """`tokens` that are new join the text, and with `pool_from_prompt` its n-grams the pool."""
        self._text += tokens[len(self._text) :]
        if not self._drafter.pool_from_prompt:
            return
        size = self._drafter.ngram
        for end in range(max(self._num_read, size - 1), len(self._text)):
            first, *tail = self._text[end - size + 1 : end + 1]
            if first >= 0 and min(tail) >= 0:
                self.pool.add(first, tuple(tail), was_read=True)
        self._num_read = len(self._text)

    def _move(self, num_tokens: int) -> None:
        """The window comes to stand for a text of `num_tokens`."""
        self._settle()
        if any(choice is not None for choice in self._choices):
            found = self.window.advance(self._choices, self._num_chosen)
            self._num_tokens += self._num_chosen
            for first, tail in reversed(found):  # the nearest column's n-gram is the newest
                self.pool.add(first, tail, was_read=False)
        self._choices = []
        self.window.skip(num_tokens - self._num_tokens)
        self._num_tokens = num_tokens

    def _settle(self) -> None:
        unsettled, self._unsettled = self._unsettled, None
        if unsettled is None:
            return
        scores = unsettled.logits
        if not self._guide.is_greedy:
            scores = self._guide.warp(scores)
            noise = self._guide.noise_at(unsettled.places, scores.shape[1], device=scores.device)
            scores = scores + noise
        (tokens,) = read(scores.argmax(dim=-1))
        for column, token in zip(unsettled.columns, tokens, strict=True):
            self._choices[column] = int(token)

    def _piece(self, count: int) -> list[int]:
        """`count` tokens that follow one another in the text, from a place by chance."""
        start = self._random.randrange(max(len(self._text) - count, 0) + 1)
        last = max(self._text[-1], 0)
        piece = [token if token >= 0 else last for token in self._text[start : start + count]]
        return piece + [last] * (count - len(piece))


def _node(tree: TokenTree, path: Sequence[int]) -> int | None:
    node: int | None = 0
    for token in path:
        node = tree.child(node, token) if node is not None else None
    return node


def _num_found(proposal: Guessed, verdict: Verdict) -> int:
    """Of the accepted tokens, those that the window alone had brought."""
    text = (proposal.tree.tokens[0], *verdict.tokens[: verdict.num_accepted])
    return sum(proposal.found[node] for node in held_path(proposal.tree, text))
