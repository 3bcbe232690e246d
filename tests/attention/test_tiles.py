"""The tiles of the tree kernel: chosen by size, and compiled for GPUs that need not be there."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mmspec.attention.kernels.tiles import (
    LARGE,
    SMALL,
    WIDE,
    Tile,
    merge_blocks,
    num_splits,
    padded,
    tile_for,
)

ROOT = Path(__file__).parents[2]
HOPPER, AMPERE, ADA = 90, 80, 89
SHARED_BYTES = {HOPPER: 227 * 1024, AMPERE: 163 * 1024, ADA: 99 * 1024}  # of a program, at most
RESERVED_BYTES = 1024  # of each program, by the driver
USES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one split": {"IS_SPLIT": False, "HAS_SINKS": True},
    "window": {"IS_SPLIT": False, "WINDOW": 4096, "HAS_SOFTCAP": True, "HAS_SINKS": True},
    "chunk": {"CHUNK": 8192},
    "behind a prefix": {"IS_SPLIT": False, "BEHIND_PREFIX": True},
}


def compiled(requests: list[dict[str, Any]]) -> list[dict[str, int]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(ROOT / "tests" / "compiled.py")]
    done = subprocess.run(
        command, input=json.dumps(requests), capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def request(arch: int, dtype: str, head_dim: int, tile: Tile, use: str) -> dict[str, Any]:
    return {
        "arch": arch,
        "dtype": dtype,
        "head_dim": head_dim,
        "tile": asdict(tile),
        "constants": USES[use],
    }


def assert_fits(answer: dict[str, int], tile: Tile, arch: int, what: str) -> None:
    program = answer["shared_bytes"] + RESERVED_BYTES
    assert answer["shared_bytes"] <= SHARED_BYTES[arch], f"{what}: {answer}"
    assert program * tile.resident <= SHARED_BYTES[arch] + RESERVED_BYTES, f"{what}: {answer}"


def test_a_tile_takes_all_pairs_where_one_can() -> None:
    assert tile_for(128, 1, 2).block_m == 16
    assert tile_for(128, 33, 2).block_m == 64
    assert tile_for(128, 500, 2) == LARGE[128][-1]
    assert tile_for(80, 16, 2) == tile_for(128, 16, 2), "80 is padded to 128"
    assert tile_for(40, 16, 2) == tile_for(64, 16, 2)
    assert tile_for(128, 64, 4) in WIDE[128]
    assert tile_for(128, 64, 2, shared_bytes=100 * 1024) in SMALL[128]


def test_tiles_are_what_a_product_takes() -> None:
    for table in (LARGE, SMALL, WIDE):
        for tile in (tile for tiles in table.values() for tile in tiles):
            for size in (tile.block_m, tile.block_n):
                assert size >= 16 and size == padded(size)


def test_splits_fill_the_device_once_and_are_no_smaller_than_it_pays() -> None:
    tile = Tile(16, 64, 4, 3, resident=2)
    assert num_splits(tile, programs=8, columns=128 * 1024, processors=132) == 33
    assert num_splits(tile, programs=8, columns=1024, processors=132) == 8
    assert num_splits(tile, programs=8, columns=10, processors=132) == 1
    assert num_splits(tile, programs=1000, columns=128 * 1024, processors=132) == 1


def test_the_kernel_compiles_for_hopper() -> None:
    tile = LARGE[128][2]
    merge = {"arch": HOPPER, "dtype": "bf16", "head_dim": 128, "splits": 264}
    tree, *merges = compiled(
        [
            request(HOPPER, "bf16", 128, tile, "plain"),
            {**merge, "constants": {}},
            {**merge, "head_dim": 80, "splits": 2, "constants": {"HAS_SINKS": True}},
        ]
    )
    assert_fits(tree, tile, HOPPER, "plain")
    assert tree["products"] > 0, "no tensor cores"
    assert [answer["stack_bytes"] for answer in (tree, *merges)] == [0, 0, 0], "registers spill"
    assert merges[1]["shared_bytes"] == 0, "a warp adds up what is not in its own registers"


def test_the_splits_of_a_merge_are_all_read_in_whole_steps() -> None:
    for splits in (2, 3, 33, 264):
        for value_dim in (16, 64, 80, 128, 256):
            blocks = merge_blocks(splits, value_dim)
            assert blocks["BLOCK_S"] >= splits and blocks["BLOCK_S"] % blocks["STEP"] == 0
            assert blocks["STEP"] == padded(blocks["STEP"]) or blocks["STEP"] < 16
            assert padded(value_dim) % blocks["BLOCK_V"] == 0
            assert blocks["STEP"] * blocks["BLOCK_V"] <= 2048, "more than a warp has registers for"


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("arch", "dtype", "table"),
    [
        (HOPPER, "bf16", LARGE),
        (HOPPER, "fp16", LARGE),
        (HOPPER, "fp32", WIDE),
        (AMPERE, "bf16", SMALL),
        (ADA, "fp16", SMALL),
        (ADA, "fp32", WIDE),
    ],
)
def test_every_tile_fits_its_device(
    arch: int, dtype: str, table: dict[int, tuple[Tile, ...]], use: str
) -> None:
    cells = [(size, tile) for size, tiles in table.items() for tile in tiles]
    cells += [(80, table[128][0]), (96, table[128][-1])]  # padded head sizes
    answers = compiled([request(arch, dtype, size, tile, use) for size, tile in cells])
    # A few registers over, in the uses that do more, are not worth a smaller tile; float32, whose
    # products are not for tensor cores, takes more of them.
    most = 512 if dtype == "fp32" else 0 if use == "plain" else 64
    for (size, tile), answer in zip(cells, answers, strict=True):
        assert_fits(answer, tile, arch, f"{size} {tile}")
        assert answer["stack_bytes"] <= most, f"{size} {tile}: {answer}"
