"""Which examples are read together, and when: known from the seed alone."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple

_SORTED_TOGETHER = 256  # examples among which those of like length come into one batch


class Place(NamedTuple):
    """A batch's place in a run, all that a resumed one needs to know of its data."""

    epoch: int = 0
    batch: int = 0  # its number within it


def split(ids: Sequence[str], *, share: float, most: int, seed: int) -> tuple[list[int], list[int]]:
    """(learned from, held out): indices of examples. The same examples are held out whatever else
    there is, as far as the share allows; of two or more at least one is held out, and one is
    not."""

    def drawn(index: int) -> bytes:
        name = f"{seed}\0{ids[index]}"
        return hashlib.sha256(name.encode(errors="backslashreplace")).digest()

    wanted = max(round(len(ids) * share), 1) if share > 0 else 0
    count = min(most, wanted, max(len(ids) - 1, 0))
    held = set(sorted(range(len(ids)), key=drawn)[:count])
    return [index for index in range(len(ids)) if index not in held], sorted(held)


def batches(lengths: Sequence[int], *, batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch: each index once, in batches of at most `batch_tokens` with their padding (a longer
    example is a batch of its own)."""
    rng = Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    found: list[list[int]] = []
    for start in range(0, len(order), _SORTED_TOGETHER):
        some = order[start : start + _SORTED_TOGETHER]
        found += packed(some, lengths, batch_tokens=batch_tokens)
    rng.shuffle(found)
    return found


def packed(
    some: Iterable[int], lengths: Sequence[int], *, batch_tokens: int
) -> Iterator[list[int]]:
    """Those of like length together, the shortest first, `batch_tokens` at most with padding."""
    batch: list[int] = []
    for index in sorted(some, key=lambda index: lengths[index]):
        if batch and lengths[index] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    yield batch


def walk(
    lengths: Sequence[int], *, batch_tokens: int, seed: int, place: Place
) -> Iterator[tuple[list[int], Place]]:
    """Batches without end from `place` on, each with the place behind it."""
    epoch, index = place
    while True:
        found = batches(lengths, batch_tokens=batch_tokens, seed=seed, epoch=epoch)
        while index < len(found):
            index += 1
            yield found[index - 1], Place(epoch, index)
        epoch, index = epoch + 1, 0
