"""GliDe heads for tests: drawn anew, or fitted to what a tiny target says."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from families import FAMILIES

from mmspec.drafters.glide import GlideHead, GlideHeadConfig
from mmspec.drafters.heads import TargetEnds
from mmspec.target import Target

PROMPT, TEXT = 10, 40  # tokens of the texts that a fitted head knows


@cache
def target_of(family: str) -> Target:
    return Target(FAMILIES[family].build(torch.float64))


def drawn(target: Target, *, num_layers: int = 1, **changes: Any) -> GlideHead:
    """A head that knows nothing, in float64."""
    config = replace(GlideHeadConfig.of_target(target, num_layers=num_layers), **changes)
    torch.manual_seed(num_layers)
    head = GlideHead(config).double()
    with torch.no_grad():
        for name, weight in head.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=1.5 * weight.shape[1] ** -0.5)
            elif "norm" in name:
                weight.normal_(1.0, 0.2)
    return head.eval().requires_grad_(False)


@cache
def fitted(family: str, *, steps: int = 50) -> tuple[GlideHead, tuple[tuple[int, ...], ...]]:
    """A head that was fitted for a second to what the target says greedily, by the training
    forward, and the prompts that it knows the answers to."""
    target = target_of(family)
    model, ends = target.model, TargetEnds(target)
    draw = torch.Generator().manual_seed(7)
    prompts = torch.randint(3, 90, (24, PROMPT), generator=draw)
    ids = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=TEXT - PROMPT,
        min_new_tokens=TEXT - PROMPT, do_sample=False,
    )  # fmt: skip
    with torch.no_grad():
        said = model(input_ids=ids, use_cache=True)
    layer = said.past_key_values.layers[-1]
    embedded, keys, values = (x.float() for x in (ends.embed(ids), layer.keys, layer.values))
    told = said.logits[:, PROMPT - 1 : -1].float().softmax(-1)
    weight = model.get_output_embeddings().weight.detach().float()
    head = drawn(target).float().requires_grad_(True).train()
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(steps):
        lengths = torch.randint(1, 6, (len(ids), TEXT), generator=draw)
        states = head(embedded, keys, values, lengths=lengths)[:, PROMPT - 1 : -1]
        loss = -(told * (states @ weight.T).log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head.double().requires_grad_(False).eval(), tuple(map(tuple, prompts.tolist()))
