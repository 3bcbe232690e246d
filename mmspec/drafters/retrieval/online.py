"""OnlineSource: what followed earlier places of the request's own prompt, passages and output."""

from collections.abc import Sequence

from mmspec.drafters.retrieval.limits import Limits
from mmspec.drafters.retrieval.source import Query, Source
from mmspec.retrieval import Continuation


class OnlineSource(Source):
    """As `prompt_lookup` does it."""

    name = "online"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def find(self, queries: Sequence[Query], *, length: int) -> list[list[Continuation]]:
        limits = self._limits
        return [
            query.own.continuations(
                limit=limits.max_places,
                length=length,
                min_match=limits.min_match,
                max_match=limits.max_match,
            )
            for query in queries
        ]
