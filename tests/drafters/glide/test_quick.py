"""On an x86 CPU a head's products are those of score calls: the same trees, sooner."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.glide import BoundGlide, Glide, GlideHead, GlideHeadConfig
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.tree import TokenTree


def test_quick_products_say_the_same() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=384, intermediate_size=512, num_hidden_layers=2, num_attention_heads=6,
        vocab_size=640, tie_word_embeddings=False,
    )  # fmt: skip
    target = Target(LlamaForCausalLM(config).eval().requires_grad_(False))
    head = GlideHead(GlideHeadConfig.of_target(target, num_layers=2)).requires_grad_(False)
    quick, plain = (
        Glide(head, max_depth=4, min_confidence=0.0).for_target(target, None) for _ in range(2)
    )
    if quick.head._linears is None:
        pytest.skip("quick products are for x86 CPUs")
    plain.head._linears = None
    prompt = Prompt(torch.randint(3, 600, (50,)))
    cache = target.new_cache()
    prefill = target.prefill(prompt, cache, cache.open(60))
    guide = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=50)

    def said(drafter: BoundGlide) -> TokenTree:
        session = drafter.start(prompt, prefill, guide)
        return session.propose([*prompt.token_ids.tolist(), 7], 12)

    first, second = said(quick), said(plain)
    assert first.tokens == second.tokens and first.num_nodes == 13
    assert first.confidence == pytest.approx(second.confidence, rel=1e-3)
    assert quick.head._linears.num_bytes > 0, "packed by what was drafted"
    assert not any("forward" in vars(module) for module in head.modules())
