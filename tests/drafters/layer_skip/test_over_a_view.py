"""Rough weights, fewer layers and a small view of the KV: any of them together, by config."""

from typing import Any

import pytest
from families import FAMILIES, prompt_inputs
from matrix import model_of

import mmspec
from mmspec.drafters.compressed_kv import BoundCompressedKV
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.requests import Request, Result

ROUGH: dict[str, dict[str, Any]] = {
    "int8": {"weights": "int8"},
    "int4": {"weights": "int4"},
    "skipped": {"layers_skipped": [1]},
    "int8, skipped": {"weights": "int8", "layers_skipped": [1]},
}

OTHER_FAMILIES = ("gemma3_text", "qwen2_5_vl")  # sliding layers; images and three planes


def engine_of(family: str, name: str = "compressed_kv", **settings: Any) -> Engine:
    view = {"budget": 12, "recent": 5, "max_share": 1.0, "min_confidence": 0.0}
    overrides = {f"drafter.compressed_kv.{key}": v for key, v in {**view, **settings}.items()}
    overrides |= {"drafter.layer_skip.min_confidence": 0.0, "drafter.layer_skip.max_depth": 2}
    overrides |= {"drafter.name": name, "decode.controller": "fixed", "decode.max_nodes": 16}
    return mmspec.load(model_of(family, "float64"), overrides=overrides)


def texts(engine: Engine, family: str, layouts: tuple[str, ...], **options: Any) -> list[Result]:
    requests = [
        Request(
            prompt_inputs(FAMILIES[family], layout, num_text_tokens=length, seed=row),  # type: ignore[arg-type]
            max_new_tokens=20, seed=row, temperature=1.0, top_k=0,
        )
        for row, (layout, length) in enumerate(zip(layouts, (40, 17, 29), strict=True))
    ]  # fmt: skip
    return engine.generate(requests, **options)


@pytest.mark.parametrize(
    "family, rough, drafter",
    [
        *(("llama", rough, "compressed_kv") for rough in ROUGH),
        *((family, "int8, skipped", "compressed_kv") for family in OTHER_FAMILIES),
        ("llama", "int8", "compressed_kv+layer_skip"),
        ("llama", "int8, skipped", "cascade"),
    ],
)
def test_the_text_is_the_plain_one(family: str, rough: str, drafter: str) -> None:
    layouts = ("text", "image_middle", "image_first") if family.endswith("vl") else ("text",) * 3
    engine = engine_of(family, drafter, **ROUGH[rough])
    drafted = texts(engine, family, layouts)
    plain = texts(engine, family, layouts, speculate=False)
    assert [r.tokens for r in drafted] == [r.tokens for r in plain]
    names = {n for r in drafted for n, count in r.stats.by_drafter.items() if count.proposed}
    assert names and (drafter == "cascade" or names == {*drafter.split("+")})


def test_rough_weights_stay_near_the_target() -> None:
    """Over a view of the whole text, int8 drafts what the target chooses, nearly always."""
    whole = {"budget": 4096, "recent": 64, "max_depth": 3}
    accepted = {}
    for weights in ("same", "int8", "int4"):
        results = texts(engine_of("llama", weights=weights, **whole), "llama", ("text",) * 3)
        counts = [result.stats.by_drafter["compressed_kv"] for result in results]
        accepted[weights] = sum(c.accepted for c in counts) / sum(c.proposed for c in counts)
    assert accepted["same"] == 1.0 > accepted["int8"] > 0.8
    assert accepted["int8"] > accepted["int4"] > 0.2


def test_the_copy_is_counted() -> None:
    copied, same = (engine_of("llama", weights=weights).drafters[0] for weights in ("int8", "same"))
    assert isinstance(copied, BoundCompressedKV) and isinstance(same, BoundCompressedKV)
    full = model_of("llama", "float64").lm_head.weight.numel()
    assert same.model.attachments.num_bytes == 0
    assert copied.model.attachments.num_bytes > full


def test_mistakes_are_told() -> None:
    with pytest.raises(ConfigError, match=r"drafter.compressed_kv.weights='int3'"):
        engine_of("llama", weights="int3")
    with pytest.raises(ConfigError, match="layers 0 to 1"):
        engine_of("llama", layers_skipped=[9])
