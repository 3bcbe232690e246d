"""Harvest: what the window has brought, against what its columns cost."""

from mmspec.state import Prices

_HOPED = 0.1  # tokens that a column is hoped to bring a step, before anything is known
_COLUMNS = 60.0  # that this hope counts for
_KEPT = 0.98  # of what is known, a proposal later: hope comes back


class Harvest:
    """Accepted tokens that the window alone has found, against the columns that were scored."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._columns = 0.0

    def pays(self, prices: Prices | None, *, nodes: int) -> bool:
        """Whether a column of so many nodes brings more time than it takes."""
        self._tokens *= _KEPT
        self._columns *= _KEPT
        if prices is None:
            return True
        rate = (self._tokens + _HOPED * _COLUMNS) / (self._columns + _COLUMNS)
        return rate * prices.token_s >= nodes * prices.node_s

    def observe(self, tokens: int, columns: int) -> None:
        """Of one step."""
        self._tokens += tokens
        self._columns += columns
