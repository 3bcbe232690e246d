"""What trained heads and lookahead cost, beside numbers computed by hand for Llama-2-7B on a H200.

Its matrices: 202,375,168 weights a layer, 131,072,000 in the head, 6,607,077,376 in all; a token
keeps 8192 values a layer. At 4096 tokens, in bfloat16, a plain step reads 13,214,154,752 bytes of
weights and 2,148,007,936 of KV: 3.840541 ms at 4 TB/s.
"""

from dataclasses import replace

import pytest

from mmspec.plan import HARDWARE, SHAPES, Forward, Method, standard_methods
from mmspec.plan.heads import own_layers, part_s
from mmspec.plan.methods import Lookahead

LLAMA_2 = replace(SHAPES["llama-2-7b"], mtp_layers=1)
TARGET = Forward(LLAMA_2, HARDWARE["h200"])
PLAIN_MS = 3.840541
GLIDE_LAYER = 235_929_600  # the layer, and 4096 x 4096 twice more for the look
HEAD = 131_072_000


def method(name: str, target: Forward = TARGET) -> Method:
    return next(found for found in standard_methods(target) if found.name == name)


def ms(target: Forward, **what: float) -> float:
    return 1000 * part_s(target, **what)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "step_ms", "low", "high"),
    [
        # 20 nodes: 3.843031 ms; five levels of 734,003,200 bytes of weights and 100,663,296 of the
        # keys of 4096 + 2048 tokens: 0.208667 ms each.
        ("GliDe head", 3.843031 + 5 * 0.208667, 2.5, 3.5),
        # 64 nodes: 3.848800 ms; five times 4096 x 4096 and a head: 1,478,492,160 bytes.
        ("Medusa heads", 3.848799 + 0.369623, 2.0, 3.0),
        # 60 nodes: 3.848274 ms; once five layers, 5 x 4096 x 4096 and a head, 2,453,667,840 bytes,
        # and 336,855,040 of the keys of 4096 + 16 tokens.
        ("DFlash head", 3.848274 + 0.697631, 3.5, 6.0),
        # 120 nodes: 3.303539 ms of weights, and 265.2 GFLOP of attention at 400 TFLOP/s: 0.663119;
        # 0.1 ms of the host.
        ("lookahead", 3.303539 + 0.663119 + 0.1, 1.5, 2.3),
    ],
)
def test_a_step_is_what_was_computed_by_hand(
    name: str, step_ms: float, low: float, high: float
) -> None:
    found = method(name)
    assert found.range == (low, high)
    for tokens in found.range:
        gain = found.gain(TARGET, tokens, context=4096, batch=1)
        assert gain.ratio == pytest.approx(tokens * PLAIN_MS / step_ms, rel=1e-5)
    nodes = {"GliDe head": 20, "Medusa heads": 64, "DFlash head": 60, "lookahead": 120}
    assert gain.nodes == nodes[name]


def test_a_part_reads_or_computes_whichever_is_slower() -> None:
    part = {"layers": GLIDE_LAYER, "head": HEAD, "keys": 0}
    assert ms(TARGET, **part, rows=1) == pytest.approx(0.1835008)  # 734,003,200 bytes
    # 2 x 367,001,600 x 256 products at 700 TFLOP/s, which is more than to read them.
    assert ms(TARGET, **part, rows=256) == pytest.approx(0.26843546)
    low_bit = replace(TARGET, weights="fp8")  # the layer alone
    assert ms(low_bit, **part, rows=1) == pytest.approx((GLIDE_LAYER + 2 * HEAD) / 4e9)


def test_keys_are_read_for_each_row_and_multiplied_for_each_query_head() -> None:
    # 8192 values of two bytes, 131,072 tokens, 16 rows: 34.36 GB.
    seen = {"layers": 0, "head": 0, "keys": 131_072, "rows": 16}
    assert ms(TARGET, **seen) == pytest.approx(8.589934592)
    # 71 query heads on one KV head of 64, as Falcon's: 4 x 71 x 64 products a key.
    shared = replace(LLAMA_2, heads=71, kv_heads=1, head_dim=64)
    slow = replace(HARDWARE["h200"], attention_flops=4e12)
    target = Forward(shared, slow)
    assert ms(target, **seen) == pytest.approx(4 * 71 * 64 * 131_072 * 16 / 4e9)


def test_a_layer_for_the_tokens_to_come_drafts_the_chain_that_pays_best() -> None:
    """Two nodes: 3.840709 ms; a layer, 2 x 4096 x 4096 and a head, 734,003,200 bytes, and
    67,125,248 of the keys of 4096 + 1 tokens: 0.200282 ms a token."""
    found = method("mtp")
    assert found.range == (0.6, 0.8) and found.assumed == "acceptance"
    gain = found.gain(TARGET, 0.1, context=4096, batch=1)
    assert gain.depth == 1
    assert gain.ratio == pytest.approx(1.1 * PLAIN_MS / (3.840709 + 0.200282), rel=1e-5)
    assert found.gain(TARGET, 1.0, context=4096, batch=1).depth == 4


def test_a_layer_for_the_tokens_to_come_has_the_experts_of_its_model() -> None:
    """Of 8 experts of 20 each token reads 2; four tokens of a level 8 (1 - (3/4)^4) = 5.46875. A
    block diffusion head is as wide as what one token reads."""
    sizes = {"hidden": 2, "vocab": 1000, "layers": 3, "sliding_layers": 2, "window": 5}
    experts = {"expert_weights": 480, "expert_share": 0.25, "counted_weights": 2000 + 3 * 70}
    shape = replace(LLAMA_2, **sizes, **experts, state_bytes=10**9, counted_kv=0.0)
    slow = replace(HARDWARE["h200"], bytes_per_s=2.0)
    target = Forward(shape, slow)
    own = own_layers(target, 1, joined=2, experts=True)
    assert own.seconds(4, context=1, batch=1) == pytest.approx(2000 + 70 + 2 * 4 + 20 * 5.46875)
    own = own_layers(target, 5, joined=5, experts=False)
    assert own.seconds(4, context=1, batch=1) == pytest.approx(2000 + 5 * (70 + 40) + 5 * 4)


def test_a_model_that_brings_no_such_layer_is_not_told_of_one() -> None:
    target = replace(TARGET, shape=replace(LLAMA_2, mtp_layers=0))
    assert "mtp" not in {found.name for found in standard_methods(target)}


def test_launches_count_by_the_layer() -> None:
    """Of 20 ms for a forward of 32 layers a GliDe level takes one 32nd, Medusa's heads half as
    much, or what they read if that is more."""
    eager = Forward(LLAMA_2, replace(HARDWARE["h200"], host_s=0.020))
    part = {"layers": GLIDE_LAYER, "head": HEAD, "keys": 0, "rows": 1}
    assert ms(eager, **part) == pytest.approx(0.625)
    plain, found = 20.0, method("GliDe head", eager)
    gain = found.gain(eager, 2.5, context=4096, batch=1)
    assert gain.ratio == pytest.approx(2.5 * plain / (20.0 + 5 * 0.625))
    eagle = method("EAGLE-like head", eager).gain(eager, 2.5, context=4096, batch=1)
    assert eagle.ratio == pytest.approx(2.5 * plain / (20.0 + 6 * 0.625))
    mtp = method("mtp", eager).gain(eager, 1.0, context=4096, batch=1)
    assert mtp.ratio == pytest.approx(5 * plain / (20.0 + 4 * 0.625))
    dflash = method("DFlash head", eager).gain(eager, 2.5, context=4096, batch=1)
    assert dflash.ratio == pytest.approx(2.5 * plain / (20.0 + 5 * 0.625))
    gain = method("Medusa heads", eager).gain(eager, 2.0, context=4096, batch=1)
    assert gain.ratio == pytest.approx(2.0 * plain / (20.0 + 0.36962304))


def test_a_cpu_scores_few_nodes() -> None:
    """2 columns of a window for n-grams of 3, 2 of these: 2 x 2 + 2 x 2 nodes, node 0 among
    them."""
    target = Forward(LLAMA_2, HARDWARE["h200"], "fp32", "fp32")
    nodes = {
        name: method(name, target).gain(target, 2.0, context=4096, batch=1).nodes
        for name in ("GliDe head", "Medusa heads", "DFlash head", "lookahead")
    }
    assert nodes == {name: 6 if name == "GliDe head" else 8 for name in nodes}
    assert Lookahead().nodes == 120
