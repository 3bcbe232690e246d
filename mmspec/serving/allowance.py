"""Allowance: so much of something that all requests together may hold."""

from mmspec.serving.errors import ApiError, busy


class Allowance:
    """In one event loop."""

    def __init__(self, most: int, *, told: str) -> None:
        self._most = self._left = most
        self._told = told

    def take(self, amount: int) -> None:
        """Raises ApiError where it is not there, now or ever."""
        if amount > self._most:
            raise ApiError(
                413,
                f"{self._told}: the request takes {amount}, and there is room for {self._most} in "
                "all; send fewer or smaller ones",
                code="request_too_large",
            )
        if amount > self._left:
            raise busy(self._told)
        self._left -= amount

    def give_back(self, amount: int) -> None:
        self._left += amount
