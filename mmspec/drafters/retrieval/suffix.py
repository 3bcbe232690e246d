"""SuffixSource: what followed the longest end of the text that a datastore's documents hold."""

from collections.abc import Sequence

from mmspec.drafters.retrieval.limits import Limits
from mmspec.drafters.retrieval.source import Query, Source
from mmspec.drafters.retrieval.store import OpenStore
from mmspec.retrieval import Continuation


class SuffixSource(Source):
    """Exact matches in one or several datastores; none crosses a document, or a medium of the
    request."""

    name = "suffix"

    def __init__(self, stores: Sequence[OpenStore], limits: Limits) -> None:
        self._stores = stores
        self._limits = limits

    def find_one(self, query: Query, length: int) -> list[Continuation]:
        limits = self._limits
        found = [
            continuation
            for store in self._stores
            for continuation in store.current.continuations(
                query.tail,
                limit=limits.max_places,
                length=length,
                min_match=limits.min_match,
                max_match=limits.max_match,
            )
        ]
        if len(self._stores) > 1:
            found.sort(key=lambda continuation: -continuation.match_length)
        return found[: limits.max_places]

    def refresh(self) -> None:
        for store in self._stores:
            store.refresh()
