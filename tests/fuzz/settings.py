"""Settings of an engine."""

import random

from mmspec.config import CacheConfig, DecodeConfig


def draw_cache(draw: random.Random) -> CacheConfig:
    return CacheConfig(
        prefix_bytes=draw.choice([0, 2**14, 2**17, 2**30]),
        feature_bytes=draw.choice([0, 2**10, 2**28]),
    )


def draw_decode(draw: random.Random) -> DecodeConfig:
    return DecodeConfig(
        verifier=draw.choice(["coupled"] * 5 + ["greedy"]),
        controller=draw.choice(["fixed", "fixed", "auto"]),
        max_nodes=draw.choice([0, 1, 2, 5, 12, 20, 20, 20, 64]),
        max_rows=draw.choice([1, 2, 3, 8]),
        state_bytes=draw.choice([4 * 2**30] * 5 + [0, 2**13, 2**16]),
        prefill_chunk=draw.choice([None, None, 0, 1, 5, 5, 16, 16]),
        probe=draw.random() < 0.95,
        attention=draw.choice(["auto"] * 7 + ["model"]),
        attention_backend=draw.choice(["auto"] * 7 + ["matmul", "flash_cpu", "sdpa"]),
        exactness=draw.choice(["standard"] * 15 + ["bitwise"]),
        choosing=draw.choice(["auto", "device", "host"]),
        packed_weights=draw.choice(["auto"] * 7 + ["always", "never"]),
        overlap=draw.choice(["always"] * 3 + ["auto", "never"]),  # where choices are on the device
    )
