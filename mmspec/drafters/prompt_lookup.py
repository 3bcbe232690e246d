"""Prompt lookup: copies what followed earlier places that look like the end of the text.

The idea is Saxena's prompt lookup decoding (2023) and LLMA (arXiv 2304.04487), which copy from one
place as a chain; here all places found become one tree, as in SuffixDecoding (arXiv 2411.04975).
"""

from collections.abc import Sequence
from typing import NamedTuple

from mmspec.calibration import Calibration
from mmspec.retrieval import Continuation, OnlineIndex, TrieNode, build_trie
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
        max_depth: int = 16,
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
        trie = build_trie(
            Continuation(self._index.continuation(match, depth), match.length) for match in matches
        )
        if len(trie) == 1:
            return root
        tree, buckets = self._grow(tokens[-1], trie)
        self._buckets = {
            _path_tokens(tree, node): buckets[node] for node in range(1, tree.num_nodes)
        }
        return tree.prune(budget)

    def _grow(self, token: int, trie: tuple[TrieNode, ...]) -> "tuple[TokenTree, list[_Bucket]]":
        """The trie's nodes that are confident enough, as a tree, and each node's bucket."""
        kept, depths, cumulative = {0: 0}, [0], [1.0]
        tokens, parents, confidence = [token], [-1], [1.0]
        buckets = [_Bucket(0, 0, 0)]
        for index, node in enumerate(trie[1:], start=1):
            parent = kept.get(node.parent)
            if parent is None:
                continue
            bucket = _bucket(node, depths[parent])
            rate = self._calibration.rate(bucket, _prior(node, depths[parent]))
            if cumulative[parent] * rate < self._drafter.min_confidence:
                continue
            kept[index] = len(tokens)
            depths.append(depths[parent] + 1)
            cumulative.append(cumulative[parent] * rate)
            tokens.append(node.token)
            parents.append(parent)
            confidence.append(rate)
            buckets.append(bucket)
        drafters = ("", *[self._drafter.name] * (len(tokens) - 1))
        tree = TokenTree(tuple(tokens), tuple(parents), tuple(confidence), drafters)
        return tree, buckets

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        accepted = set(verdict.path)
        for node in range(1, tree.num_nodes):
            if tree.parents[node] in accepted:
                bucket = self._buckets.get(_path_tokens(tree, node))
                if bucket is not None:
                    self._calibration.observe(bucket, node in accepted)
        self._buckets = {}

    def close(self) -> None:
        pass


class _Bucket(NamedTuple):
    """Nodes that are accepted about equally often."""

    match: int  # log2 of the match length at the node, path below the match included
    support: int  # 0: one place, 1: two or three, 2: more
    share: int  # quarter of the siblings' weight


def _bucket(node: TrieNode, depth: int) -> _Bucket:
    support = 0 if node.num_places == 1 else 1 if node.num_places <= 3 else 2
    return _Bucket((node.match_length + depth).bit_length(), support, int(node.share * 3.999))


def _prior(node: TrieNode, depth: int) -> float:
    """What is believed of a node before any was seen: longer matches and agreement count."""
    length = node.match_length + depth
    return node.share * length / (length + 2.0)


def _path_tokens(tree: TokenTree, node: int) -> tuple[int, ...]:
    return tuple(tree.tokens[n] for n in tree.path_to(node)[1:])


def _without_media(tokens: list[int], media: Sequence[MediaSpan]) -> list[int]:
    for span in media:
        tokens[span.start : span.stop] = [_SEPARATOR] * (span.stop - span.start)
    return tokens
