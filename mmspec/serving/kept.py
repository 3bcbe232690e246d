"""KeptResponses: the last responses that their clients wanted kept, in memory."""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple

from mmspec.serving.errors import ApiError
from mmspec.serving.settings import ServerSettings


class KeptResponse(NamedTuple):
    body: Mapping[str, Any]
    items: Sequence[object]  # the conversation until here, the answer's own last
    num_bytes: int


class KeptResponses:
    """Each is found by its own client alone. For several threads."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._kept = OrderedDict[tuple[str, str], KeptResponse]()  # by namespace and id
        self._num_bytes = 0
        self._lock = Lock()

    def put(self, namespace: str, body: Mapping[str, Any], items: Sequence[object]) -> None:
        """The oldest make room for it."""
        kept = KeptResponse(body, items, len(json.dumps([body, items])))
        settings = self._settings
        with self._lock:
            self._kept[namespace, body["id"]] = kept
            self._num_bytes += kept.num_bytes
            while (
                len(self._kept) > settings.max_kept_responses
                or self._num_bytes > settings.max_kept_bytes
            ):
                _, oldest = self._kept.popitem(last=False)
                self._num_bytes -= oldest.num_bytes

    def get(self, namespace: str, name: str, *, param: str | None = None) -> KeptResponse:
        """Raises ApiError where it is not there."""
        with self._lock:
            kept = self._kept.get((namespace, name))
        if kept is None:
            raise ApiError(
                404,
                f"no response {name!r:.80} is kept here; expected the id of one of the last "
                f"{self._settings.max_kept_responses} that were asked for with store=true",
                code="response_not_found",
                param=param,
            )
        return kept

    def drop(self, namespace: str, name: str) -> None:
        """Raises ApiError where it is not there."""
        self.get(namespace, name)
        with self._lock:
            kept = self._kept.pop((namespace, name), None)
            self._num_bytes -= 0 if kept is None else kept.num_bytes
