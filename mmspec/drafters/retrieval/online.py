"""OnlineSource: what followed earlier places of the request's own prompt, passages and output."""

from mmspec.drafters.retrieval.limits import Limits
from mmspec.drafters.retrieval.source import Query, Source
from mmspec.retrieval import Continuation


class OnlineSource(Source):
    """All that `prompt_lookup` asks."""

    name = "online"

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def find_one(self, query: Query, length: int) -> list[Continuation]:
        limits = self._limits
        return query.own.continuations(
            limit=limits.max_places,
            length=length,
            min_match=limits.min_match,
            max_match=limits.max_match,
        )
