"""Where a greedy text begins to loop. A loop is trivial to draft, so nothing after it counts."""

from collections.abc import Sequence

GRAM, TIMES = 20, 3


def loop_start(tokens: Sequence[object], *, gram: int = GRAM, times: int = TIMES) -> int:
    """How many tokens (or characters) there are before the text begins to repeat itself; all of
    them if it never does.

    A text loops once some `gram` tokens are seen `times` times (they may overlap). It begins to
    loop where they came for the second time: what follows adds nothing new.
    """
    places: dict[tuple[object, ...], list[int]] = {}
    for start in range(len(tokens) - gram + 1):
        seen = places.setdefault(tuple(tokens[start : start + gram]), [])
        seen.append(start)
        if len(seen) == times:
            return seen[1]
    return len(tokens)
