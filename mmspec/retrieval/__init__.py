"""Indexes over tokens and what followed them. Imports nothing from the rest of mmspec."""

from mmspec.retrieval.continuations import Continuation, TrieNode, build_trie
from mmspec.retrieval.online_index import Match, OnlineIndex

__all__ = ["Continuation", "Match", "OnlineIndex", "TrieNode", "build_trie"]
