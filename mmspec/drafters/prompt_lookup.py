"""Prompt lookup: copies what followed earlier places that look like the end of the text.

The idea is Saxena's prompt lookup decoding (2023) and LLMA (arXiv 2304.04487), which copy from one
place as a chain; here all places found become one tree, as in SuffixDecoding (arXiv 2411.04975).
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from mmspec.calibration import Calibration
from mmspec.retrieval import Branch, Continuation, OnlineIndex, Trie
from mmspec.sampling import DraftGuide
from mmspec.state import MediaSpan, Prefill, Prompt, Scores, Verdict
from mmspec.tree import TokenTree

_SEPARATOR = -1  # stands for media placeholders, which are never copied


class PromptLookup:
    """Drafts from the request's own prompt and output; needs no model."""

    name = "prompt_lookup"

    def __init__(
        self,
        *,
        max_depth: int = 48,
        max_matches: int = 16,
        min_match: int = 2,
        max_match: int = 32,
        min_confidence: float = 0.15,
    ) -> None:
        """`min_match` and `max_match` count matching tokens before a copied place;
        a node is proposed if its whole path is accepted with at least `min_confidence`."""
        self.max_depth = max_depth
        self.max_matches = max_matches
        self.min_match = min_match
        self.max_match = max_match
        self.min_confidence = min_confidence

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "PromptLookupSession":
        index = OnlineIndex(self.min_match)
        index.extend(_without_media(prompt.token_ids.tolist(), prompt.media))
        return PromptLookupSession(self, index)


class PromptLookupSession:
    """One request's index and calibration."""

    def __init__(self, drafter: PromptLookup, index: OnlineIndex) -> None:
        self._drafter = drafter
        self._index = index
        self._calibration = Calibration()
        self._buckets: dict[tuple[int, ...], _Bucket] = {}

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        drafter = self._drafter
        self._index.extend(tokens[len(self._index) :])
        root = TokenTree.root(tokens[-1])
        self._buckets = {}
        if budget == 0:
            return root
        matches = self._index.matches(
            limit=drafter.max_matches, min_match=drafter.min_match, max_match=drafter.max_match
        )
        depth = min(drafter.max_depth, budget)
        found = [Continuation(self._index.continuation(m, depth), m.length) for m in matches]
        return self._grow(tokens[-1], Trie(found), budget) if found else root

    def _grow(self, token: int, trie: Trie, budget: int) -> TokenTree:
        """The trie's `budget` most confident nodes, found best first, as a tree."""
        tokens, parents, confidence = [token], [-1], [1.0]
        paths: list[tuple[int, ...]] = [()]
        # (-cumulative confidence, order, branch, parent, confidence, bucket)
        waiting: list[tuple[float, int, Branch, int, float, _Bucket]] = []
        count = 0

        def wait_for_children(branch: Branch, parent: int, cumulative: float) -> None:
            nonlocal count
            for child in trie.children(branch):
                bucket = _bucket(child)
                rate = self._calibration.rate(bucket, _prior(child))
                if cumulative * rate >= self._drafter.min_confidence:
                    count += 1
                    entry = (-cumulative * rate, count, child, parent, rate, bucket)
                    heappush(waiting, entry)

        wait_for_children(trie.root, 0, 1.0)
        while waiting and len(tokens) <= budget:
            cumulative, _, branch, parent, rate, bucket = heappop(waiting)
            tokens.append(branch.token)
            parents.append(parent)
            confidence.append(rate)
            paths.append((*paths[parent], branch.token))
            self._buckets[paths[-1]] = bucket
            wait_for_children(branch, len(tokens) - 1, -cumulative)
        drafters = ("", *[self._drafter.name] * (len(tokens) - 1))
        return TokenTree(tuple(tokens), tuple(parents), tuple(confidence), drafters)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        accepted = set(verdict.path)
        for node in range(1, tree.num_nodes):
            if tree.parents[node] in accepted:
                bucket = self._buckets.get(_path_tokens(tree, node))
                if bucket is not None:
                    self._calibration.observe(bucket, node in accepted)
        self._buckets = {}

    def take_back(self, num_tokens: int) -> None:
        self._index.truncate(num_tokens)
        self._buckets = {}

    def close(self) -> None:
        pass


class _Bucket(NamedTuple):
    """Nodes that are accepted about equally often."""

    match: int  # log2 of the match length at the node, path below the match included
    support: int  # 0: one place, 1: two or three, 2: more
    share: int  # quarter of the siblings' weight


def _bucket(branch: Branch) -> _Bucket:
    num_places = len(branch.places)
    support = 0 if num_places == 1 else 1 if num_places <= 3 else 2
    match = branch.match_length + branch.depth - 1
    return _Bucket(match.bit_length(), support, int(branch.share * 3.999))


def _prior(branch: Branch) -> float:
    """What is believed of a node before any was seen: longer matches and agreement count."""
    length = branch.match_length + branch.depth - 1
    return branch.share * length / (length + 2.0)


def _path_tokens(tree: TokenTree, node: int) -> tuple[int, ...]:
    return tuple(tree.tokens[n] for n in tree.path_to(node)[1:])


def _without_media(tokens: list[int], media: Sequence[MediaSpan]) -> list[int]:
    for span in media:
        tokens[span.start : span.stop] = [_SEPARATOR] * (span.stop - span.start)
    return tokens
