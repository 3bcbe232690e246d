"""The order of a suffix index: the places of a text, sorted by the tokens before them backwards.

Prefix doubling (Manber and Myers, 1993) in numpy, with two changes: only places that are not told
apart yet are sorted again (Larsson and Sadakane, 2007), and the order stops at `DEPTH` tokens,
since no look-up asks for more: so a text that repeats itself costs no more rounds than any other.
"""

import numpy as np
from numpy.typing import NDArray

DEPTH = 64  # tokens before a place that decide its order; among equals the earlier place is first


def sort_ends(tokens: NDArray[np.unsignedinteger], *, vocab_size: int) -> NDArray[np.uint32]:
    """The places 0 .. len(tokens) - 1, sorted by the up to `DEPTH` tokens that end before each.

    Place e is the index of the token that follows e tokens. Tokens of `vocab_size` and more are
    separators: they compare equal and above all others; the text's beginning is below all. Memory
    is about 50 bytes a token at its peak. Raises ValueError for 2^32 tokens or more.
    """
    count = len(tokens)
    if count >= 2**32 - 1:
        raise ValueError(f"{count} tokens in one suffix array: expected fewer than 2^32 - 1")
    if count == 0:
        return np.empty(0, np.uint32)
    keys, depth = _packed(tokens, vocab_size)
    ends = np.argsort(keys).astype(np.uint32)
    keys = keys[ends]
    slots = np.arange(count, dtype=np.uint32)  # of `ends` that are not decided yet
    rank = np.empty(count, np.uint32)  # first slot of the place's group
    while True:
        slots = _regroup(ends, rank, keys, slots)
        del keys
        places = ends[slots].astype(np.int64)
        if depth >= DEPTH or not len(slots):
            break
        step = min(depth, DEPTH - depth)
        # The tokens before e: `depth` of them by its own rank, and `step` more by that of e - step.
        # None of them is within `step` of the beginning: that alone would have told it apart.
        keys = rank[places].astype(np.uint64) << np.uint64(32)
        keys |= rank[places - step]
        order = np.argsort(keys)
        ends[slots] = places[order]
        keys = keys[order]
        depth += step
    decided = (rank[places].astype(np.uint64) << np.uint64(32)) | places.astype(np.uint64)
    decided.sort()
    ends[slots] = decided.astype(np.uint32)  # the lower half: the place
    return ends


def _packed(tokens: NDArray[np.unsignedinteger], vocab_size: int) -> tuple[NDArray[np.uint64], int]:
    """(a key of the last tokens before each place, how many tokens fit into it)."""
    bits = (vocab_size + 1).bit_length()  # 0: before the beginning, vocab_size + 1: a separator
    fitting = min(64 // bits, DEPTH)
    shifted = np.minimum(tokens, vocab_size).astype(np.uint64)
    shifted += np.uint64(1)
    keys = np.zeros(len(tokens), np.uint64)
    for back in range(1, min(fitting, len(tokens)) + 1):
        keys[back:] |= shifted[:-back] << np.uint64(bits * (fitting - back))
    return keys, fitting


def _regroup(
    ends: NDArray[np.uint32],
    rank: NDArray[np.uint32],
    keys: NDArray[np.uint64],
    slots: NDArray[np.uint32],
) -> NDArray[np.uint32]:
    """Writes the ranks of the places in `slots`, sorted by `keys`; the slots still undecided."""
    is_first = np.empty(len(slots), bool)
    is_first[:1] = True
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    group = np.flatnonzero(is_first)
    sizes = np.diff(group, append=len(slots))
    rank[ends[slots]] = np.repeat(slots[group], sizes)
    return slots[np.repeat(sizes > 1, sizes)]
