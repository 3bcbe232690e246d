"""Indexes over tokens and what followed them. Knows nothing of models; imports nothing from the
rest of mmspec but its errors.

corpus, suffix_index    documents on disk, and the longest end of a text that they hold
dense_index             hidden states -> positions whose hidden states were like them, by
                        exact_vectors or faiss_index; dense_builder makes it
datastore               a folder with both, opened in milliseconds; lookups finds places in it
writer                  adds, deletes, goes on; store_folder, journal, merging, deleting, dense_keys
online_index            this request's text, growing
generated               what was generated before, bounded in bytes
continuations, trie     what all of them found, weighted -> one tree, grown where it is asked
"""

from mmspec.retrieval.continuations import Continuation
from mmspec.retrieval.corpus import Document
from mmspec.retrieval.datastore import Datastore
from mmspec.retrieval.dense_keys import KeyBatch
from mmspec.retrieval.generated import GeneratedMatch, GeneratedStore
from mmspec.retrieval.online_index import Match, OnlineIndex
from mmspec.retrieval.places import Place
from mmspec.retrieval.trie import Branch, Trie
from mmspec.retrieval.writer import DatastoreWriter

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
