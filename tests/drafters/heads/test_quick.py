"""On an x86 CPU a head's products are those of score calls: the same trees, sooner."""

from typing import Any

import pytest
import torch
from eagle_heads import head_config
from transformers import LlamaConfig, LlamaForCausalLM

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.eagle import Eagle, EagleHead
from mmspec.drafters.glide import Glide, GlideHead, GlideHeadConfig
from mmspec.state import Prompt, Taps
from mmspec.target import Target
from mmspec.target.linears import quick_linears


def drafter_of(name: str, target: Target) -> Any:
    if name == "glide":
        head = GlideHead(GlideHeadConfig.of_target(target, num_layers=2)).requires_grad_(False)
        return Glide(head, max_depth=4, min_confidence=0.0)
    version = int(name.removeprefix("eagle"))
    own = EagleHead(head_config(target.model, version)).requires_grad_(False)
    if version == 3:
        own.set_vocabulary(torch.arange(own.config.draft_vocab_size))
    return Eagle(own, max_depth=4, min_confidence=0.0)


@pytest.mark.parametrize("name", ["eagle1", "eagle3", "glide"])
def test_quick_products_say_the_same(name: str) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=384, intermediate_size=512, num_hidden_layers=2, num_attention_heads=6,
        vocab_size=640, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    target = Target(model, linears=quick_linears(model))
    if target.attachments.linears is None:
        pytest.skip("quick products are for x86 CPUs")
    drafter, prompt = drafter_of(name, target), Prompt(torch.randint(3, 600, (50,)))
    other = Target(model)
    quick, plain = (drafter.for_target(one, None) for one in (target, other))
    assert not quick.head._linears.num_bytes
    plain.head._linears = None
    cache, taps = other.new_cache(), getattr(quick, "taps", Taps())
    prefill = other.prefill(prompt, cache, cache.open(60), taps=taps.layers)
    guide = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=50)
    first, second = (
        bound.start(prompt, prefill, guide).propose([*prompt.token_ids.tolist(), 7], 12)
        for bound in (quick, plain)
    )
    assert first.tokens == second.tokens and first.num_nodes == 13
    assert first.confidence == pytest.approx(second.confidence, rel=1e-3)
    assert quick.head._linears.num_bytes > 0, "packed by what was drafted"
    packed = target.attachments.linears.num_bytes
    assert (packed > 0) == (name == "eagle1"), "the target's head, packed once"
    assert not any("forward" in vars(part) for part in (*drafter.head.modules(), *model.modules()))
