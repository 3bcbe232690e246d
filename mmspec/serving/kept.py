"""KeptResponses: the last responses that their clients wanted kept, in memory."""

import sys
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
        """The oldest make room for it, unless there is not so much."""
        kept = KeptResponse(body, items, _num_bytes([body, items]))
        settings = self._settings
        if kept.num_bytes > settings.max_kept_bytes:
            return
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
            raise self._missing(name, param)
        return kept

    def drop(self, namespace: str, name: str) -> None:
        """Raises ApiError where it is not there."""
        with self._lock:
            kept = self._kept.pop((namespace, name), None)
            if kept is None:
                raise self._missing(name)
            self._num_bytes -= kept.num_bytes

    def _missing(self, name: str, param: str | None = None) -> ApiError:
        return ApiError(
            404,
            f"no response {name!r:.80} is kept here; expected the id of one of the last "
            f"{self._settings.max_kept_responses} that were asked for with store=true",
            code="response_not_found",
            param=param,
        )


def _num_bytes(value: object) -> int:
    """In memory: of small values that is many times their text."""
    count, left = 0, [value]
    while left:
        one = left.pop()
        count += sys.getsizeof(one)
        if isinstance(one, Mapping):
            left += (*one, *one.values())
        elif isinstance(one, Sequence) and not isinstance(one, str):
            left += one
    return count
