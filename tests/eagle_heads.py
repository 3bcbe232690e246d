"""EAGLE heads that know something of a tiny target: fitted in closed form to its own texts."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from families.vision import FIRST_MEDIA_TOKEN
from torch import Tensor

from mmspec.drafters.eagle import EagleHead, EagleHeadConfig
from mmspec.drafters.heads import BlockConfig

ROWS, LENGTH = 24, 40
LAYERS = (0, 1, 1)  # what an EAGLE-3 head reads here: the targets have two layers, or three


def head_config(model: Any, version: int, **changes: Any) -> EagleHeadConfig:
    """Of a head for the target, with eight heads of its own, as wide as both of its inputs."""
    text = model.config.get_text_config()
    block = BlockConfig(
        hidden_size=text.hidden_size,
        intermediate_size=32,
        num_heads=8,
        num_kv_heads=8,
        head_dim=2 * text.hidden_size // 8,
        vocab_size=text.vocab_size,
        max_positions=512,
    )
    options: dict[str, Any] = {
        "version": version,
        "block": block,
        "draft_vocab_size": text.vocab_size,
        "target_hidden_size": text.hidden_size,
        "has_embedding": False,
        "has_head": version == 3,
    }
    if version == 3:
        options |= {"layers": LAYERS, "draft_vocab_size": FIRST_MEDIA_TOKEN - 10}
    return EagleHeadConfig(**(options | changes))


def unfitted(model: Any, version: int, **changes: Any) -> EagleHead:
    torch.manual_seed(4)
    head = EagleHead(head_config(model, version, **changes)).to(model.dtype)
    if head.target_ids is not None:
        size = head.config.draft_vocab_size
        head.set_vocabulary(torch.arange(size) + 3)
    return head.requires_grad_(False).eval()


@cache
def fitted(model: Any, version: int) -> EagleHead:
    """A head that maps a token and the feature before it to the feature after it, by least squares
    over what the target itself has said. One for each target object."""
    texts, states = said(model)
    head = unfitted(model, version)
    ends = model.get_input_embeddings().weight[texts[:, 1:]]
    goal = states[-1][:, 1:]
    with torch.no_grad():
        if version == 1:
            _fit_fc(head, ends, states[-1][:, :-1], goal)
        else:
            lm_head = model.get_output_embeddings().weight
            _fit_layer(head, ends, [states[layer][:, :-1] for layer in LAYERS], goal, lm_head)
    return head


@cache
@torch.no_grad()
def said(model: Any) -> tuple[Tensor, Sequence[Tensor]]:
    """(rows, length) tokens, of which all but the first few are the target's, and its states."""
    draw = torch.Generator().manual_seed(5)
    texts = torch.randint(3, 90, (ROWS, 6), generator=draw)
    texts[:, 0] = 1
    half = texts[: ROWS // 2]
    for _ in range(LENGTH - 6):  # half of them greedy
        logits = model(input_ids=texts).logits[:, -1, :FIRST_MEDIA_TOKEN].float()
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=draw)
        drawn[: half.shape[0]] = logits[: half.shape[0]].argmax(-1, keepdim=True)
        texts = torch.cat([texts, drawn], dim=1)
    return texts, model(input_ids=texts, output_hidden_states=True).hidden_states


def _fit_fc(head: EagleHead, embeddings: Tensor, features: Tensor, goal: Tensor) -> None:
    _silence(head.layers[0])
    read = torch.cat([embeddings, features], dim=-1)
    head.fc.weight.copy_(solved(read, goal).T)  # type: ignore[union-attr]


def _fit_layer(
    head: EagleHead, embeddings: Tensor, features: Sequence[Tensor], goal: Tensor, out: Tensor
) -> None:
    """Attention that looks at its own token alone, as keys are queries and large; the output
    projection is what is fitted."""
    layer = head.midlayer
    _silence(layer)
    attention = layer.self_attn
    _orthogonal_(attention.q_proj.weight)
    attention.q_proj.weight.mul_(8.0)
    attention.k_proj.weight.copy_(attention.q_proj.weight)
    _orthogonal_(attention.v_proj.weight)
    assert head.fc is not None and head.lm_head is not None
    _orthogonal_(head.fc.weight)
    feature = head.project(torch.cat(list(features), dim=-1))
    read = torch.cat([layer.input_layernorm(embeddings), layer.hidden_norm(feature)], dim=-1)
    attention.o_proj.weight.copy_(solved(attention.v_proj(read), goal - feature).T)
    head.lm_head.weight.copy_(out[head.target_ids])


def _silence(layer: Any) -> None:
    layer.self_attn.o_proj.weight.zero_()
    layer.mlp.down_proj.weight.zero_()


def solved(read: Tensor, goal: Tensor) -> Tensor:
    read, goal = read.flatten(0, 1).double(), goal.flatten(0, 1).double()
    gram = read.T @ read + 1e-3 * torch.eye(read.shape[1], dtype=read.dtype)
    return torch.linalg.solve(gram, read.T @ goal)


def _orthogonal_(weight: Tensor) -> None:
    weight.copy_(torch.nn.init.orthogonal_(torch.empty(weight.shape, dtype=torch.float64)))
