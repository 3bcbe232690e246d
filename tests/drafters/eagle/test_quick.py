"""On an x86 CPU a head's products are those of score calls: the same states, sooner."""

import pytest
import torch
from eagle_heads import head_config
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mmspec.drafters.eagle import EagleHead
from mmspec.drafters.eagle.bound_head import BoundHead
from mmspec.drafters.heads import WholeSequences
from mmspec.target import Target
from mmspec.target.linears import quick_linears


def target_of(*, is_quick: bool) -> Target:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=384,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=6,
        vocab_size=640,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Target(model, linears=quick_linears(model) if is_quick else None)


@pytest.mark.parametrize("version", [1, 3])
def test_quick_products_say_the_same(version: int) -> None:
    target = target_of(is_quick=True)
    if target.attachments.linears is None:
        pytest.skip("quick products are for x86 CPUs")
    torch.manual_seed(1)
    head = EagleHead(head_config(target.model, version)).requires_grad_(False)
    if version == 3:
        head.set_vocabulary(torch.arange(head.config.draft_vocab_size))
    quick, plain = (
        BoundHead(head, target, dtype=None),
        BoundHead(head, target_of(is_quick=False), dtype=None),
    )
    plain._linears = None
    assert quick._linears is not None and not quick._linears.num_bytes

    def said(bound: BoundHead) -> Tensor:
        ids, draw = torch.arange(6).unsqueeze(0), torch.Generator().manual_seed(2)
        features = torch.randn(1, 6, 384 * len(bound.taps), generator=draw)
        projected = bound.project(features)
        with torch.no_grad():
            states = bound.states(ids, projected, ids, WholeSequences())
            return bound.over_target(bound.logits(states.read[0]))

    torch.testing.assert_close(said(quick), said(plain), rtol=1e-4, atol=1e-5)
    assert quick._linears.num_bytes > 0
    packed = target.attachments.linears.num_bytes
    assert (packed > 0) == (version == 1), "the target's head, packed once"
    assert not any("forward" in vars(module) for module in head.modules())
    assert not any("forward" in vars(module) for module in target.model.modules())
