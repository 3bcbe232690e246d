"""Indexes over tokens and what followed them. Knows nothing of models; imports nothing from the
rest of mmspec but its errors.

corpus, suffix_index    documents on disk, and the longest end of a text that they hold
dense_index             hidden states -> positions whose hidden states were like them
datastore, writer       a folder with both, opened in milliseconds; adds, deletes, goes on
online_index            this request's text, growing
generated               what was generated before, bounded in bytes
continuations, trie     what all of them found, weighted -> one tree, grown where it is asked
"""

from mmspec.retrieval.continuations import Continuation
from mmspec.retrieval.corpus import Document
from mmspec.retrieval.datastore import Datastore, Place
from mmspec.retrieval.generated import GeneratedMatch, GeneratedStore
from mmspec.retrieval.online_index import Match, OnlineIndex
from mmspec.retrieval.trie import Branch, Trie
from mmspec.retrieval.writer import DatastoreWriter, KeyBatch

__all__ = [
    "Branch",
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
    "Trie",
]
