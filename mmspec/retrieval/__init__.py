"""Indexes over tokens and what followed them. Imports nothing from the rest of mmspec.

corpus, suffix_index    documents on disk, and the longest end of a text that they hold
dense_index             hidden states -> positions whose hidden states were like them
datastore, writer       a folder with both, opened in milliseconds; adds, deletes, goes on
online_index            this request's text, growing
generated               what was generated before, bounded in bytes
continuations           what all of them found -> one weighted trie
"""

from mmspec.retrieval.continuations import Continuation, TrieNode, build_trie
from mmspec.retrieval.corpus import Document
from mmspec.retrieval.datastore import Datastore, Place
from mmspec.retrieval.generated import GeneratedMatch, GeneratedStore
from mmspec.retrieval.online_index import Match, OnlineIndex
from mmspec.retrieval.writer import DatastoreWriter, KeyBatch

__all__ = [
    "Continuation",
    "Datastore",
    "DatastoreWriter",
    "Document",
    "GeneratedMatch",
    "GeneratedStore",
    "KeyBatch",
    "Match",
    "OnlineIndex",
    "Place",
    "TrieNode",
    "build_trie",
]
