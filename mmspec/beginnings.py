"""How far two texts are the same."""

from collections.abc import Hashable, Sequence


def num_shared(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """How many tokens both begin with, which is also the place of their first difference.

    Long ones are compared whole, halves and quarters at a time: token by token a long answer would
    take longer than its steps.
    """
    one, other = tuple(one), tuple(other)
    least, most = 0, min(len(one), len(other))
    tried = most
    while least < most:
        if one[least:tried] == other[least:tried]:
            least = tried
        else:
            most = tried - 1
        tried = (least + most + 1) // 2
    return least
