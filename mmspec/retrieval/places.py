"""Places: where a look-up has found something, and what is read back from there."""

from typing import NamedTuple

from mmspec.retrieval.corpus import DocumentName
from mmspec.retrieval.suffix_index import Found


class Place(NamedTuple):
    """Somewhere in a datastore: its token follows a match."""

    segment: int  # number in `Datastore.segments`
    offset: int  # of the token in the segment's shard


class StoredDocument(NamedTuple):
    """A document as it is read back."""

    name: DocumentName
    position: int  # of its first token; the next token's is one more
    tokens: list[int]  # -1 for separators


class Longest(NamedTuple):
    """The longest match of a look-up, in every segment that has it."""

    length: int  # 0: nothing was found
    num_places: int  # that have it, in all segments
    found: tuple[Found | None, ...]  # one a segment
