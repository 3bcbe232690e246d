"""Tile: the block sizes of `tree_kernel`, by a table; and how many splits a launch has.

The entries are by expectation: what the compiler says of registers and shared memory (each fits the
devices of its table; with 2 bytes an element nothing spills in the plain case, with 4 bytes some
registers do), never yet measured. An entry that was measured replaces one here, and nothing else
has to change; `scripts/bench_attention.py --tiles` measures them.
"""

from dataclasses import dataclass

_LEAST_COLUMNS = 128  # of a split: below that merging costs more than it saves
_MERGED_TOGETHER = 2048  # values that a warp of `merge_kernel` keeps in registers
_LEAST_MERGED = 32  # of a head: 128 bytes, a line of the cache
LARGE_SHARED_BYTES = 200 * 1024  # of a multiprocessor: Hopper and Blackwell in data centres


@dataclass(frozen=True)
class Tile:
    block_m: int  # (node, query head) pairs; tl.dot takes 16 at least
    block_n: int  # slots
    num_warps: int
    num_stages: int  # blocks of keys and values under way
    resident: int = 2  # programs that a multiprocessor runs at once

    def num_tiles(self, pairs: int) -> int:
        return -(-pairs // self.block_m)


Tiles = tuple[Tile, ...]
# By the padded head size, the larger of keys' and values'; smallest first.
LARGE: dict[int, Tiles] = {  # 2 bytes an element, much shared memory
    64: (Tile(16, 128, 4, 3), Tile(32, 64, 4, 3), Tile(64, 64, 4, 3), Tile(128, 64, 8, 3, 1)),
    128: (Tile(16, 64, 4, 4), Tile(32, 64, 4, 4), Tile(64, 64, 4, 2), Tile(128, 64, 8, 3, 1)),
    256: (Tile(16, 32, 4, 3), Tile(32, 32, 4, 3), Tile(64, 32, 8, 2)),
}
SMALL: dict[int, Tiles] = {  # 2 bytes an element, other devices
    64: (Tile(16, 64, 4, 2), Tile(32, 64, 4, 2), Tile(64, 64, 4, 2)),
    128: (Tile(16, 64, 4, 2), Tile(32, 32, 4, 2), Tile(64, 32, 4, 2)),
    256: (Tile(16, 32, 4, 2, 1), Tile(32, 16, 4, 2, 1)),
}
WIDE: dict[int, Tiles] = {  # 4 bytes an element: not for tensor cores
    64: (Tile(16, 64, 4, 2), Tile(32, 32, 4, 2)),
    128: (Tile(16, 32, 4, 2),),
    256: (Tile(16, 16, 4, 2, 1),),
}


def padded(size: int) -> int:
    """The power of two that a head of `size` is padded to; a product takes 16 at least."""
    return max(1 << (size - 1).bit_length(), 16)


def tile_for(
    head_dim: int, pairs: int, element_bytes: int, *, shared_bytes: int = LARGE_SHARED_BYTES
) -> Tile:
    """The tile for `pairs` of nodes and query heads of one KV head: the smallest that takes them
    all, or the largest there is. `head_dim` is the larger of keys' and values', at most 256;
    `shared_bytes` what a multiprocessor has."""
    table = LARGE if shared_bytes >= LARGE_SHARED_BYTES else SMALL
    if element_bytes > 2:
        table = WIDE
    tiles = table[max(padded(head_dim), 64)]
    return next((tile for tile in tiles if pairs <= tile.block_m), tiles[-1])


def num_splits(tile: Tile, programs: int, columns: int, processors: int) -> int:
    """In how many splits up to `columns` slots are read, where `programs` read different heads,
    rows or tiles anyway: as many as run at once."""
    most = max(columns // _LEAST_COLUMNS, 1)
    return max(min(tile.resident * processors // programs, most), 1)


def least_columns(tile: Tile) -> int:
    """Columns of a split, at least: a multiple of the tile's slots."""
    return max(_LEAST_COLUMNS, tile.block_n)


def merge_blocks(splits: int, value_dim: int) -> dict[str, int]:
    """The sizes of `merge_kernel`: all splits, those whose values are read together, and how much
    of a head a program merges: less where there are many, so that all are read at once."""
    block = max(1 << (splits - 1).bit_length(), 2)
    part = min(max(_MERGED_TOGETHER // block, _LEAST_MERGED), padded(value_dim))
    return {"BLOCK_S": block, "STEP": min(block, _MERGED_TOGETHER // part), "BLOCK_V": part}
