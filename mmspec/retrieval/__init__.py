"""Retrieval: earlier places that look like the end of a text, and what followed them. Knows nothing
of models; imports nothing from the rest of mmspec."""

from mmspec.retrieval.continuations import Continuation, TrieNode, build_trie
from mmspec.retrieval.online_index import Match, OnlineIndex
from mmspec.retrieval.trie import Branch, Trie

__all__ = ["Branch", "Continuation", "Match", "OnlineIndex", "Trie", "TrieNode", "build_trie"]
