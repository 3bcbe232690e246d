"""Prompts of ordinary tokens."""

from collections.abc import Sequence

from mmspec.sweep.sizes import BOS_TOKEN


def text_tokens(count: int, seed: int) -> Sequence[int]:
    """Ids of ordinary text, among which phrases come again."""
    phrases = [
        [3 + (seed * 31 + p * 17 + i * (7 + p)) % 90 for i in range(5 + p)] for p in range(3)
    ]
    text = [BOS_TOKEN, *phrases[0], *phrases[1]]
    place = seed
    while len(text) < count:
        text += phrases[place % 3]
        place = place * 5 + 1
    return text[:count]
