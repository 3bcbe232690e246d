"""CrossRope: how a head's query is rotated before it meets the target's keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from mmspec.target.stateful import cache_keyword
from mmspec.target.target import input_device

Layout = Literal["halves", "pairs"]


@dataclass(frozen=True)
class CrossRope:
    """The rotation of the target's keys in one of its layers.

    The cache holds keys that are rotated already, so a query must be rotated as the target's own
    queries are, by the position of its token: then what it sees of a key depends on the distance
    alone (GliDe rotates so too, arXiv 2402.02082). Dimensions beyond the frequencies are not
    rotated; without frequencies none is (learned positions, latent attention). A factor on the
    rotations, as YaRN's, is left to the query's projection to learn.

    A rotation that is not the target's own costs acceptance and nothing else.
    """

    frequencies: tuple[float, ...] = ()  # (half the rotated dimensions,) radians a position
    layout: Layout = "halves"  # dimension i turns with i + half, or 2 i with 2 i + 1
    planes: tuple[int, ...] = ()  # by which plane of M-RoPE each frequency counts; (): the first

    @staticmethod
    def of_target(model: PreTrainedModel, layer: int) -> "CrossRope":
        """That of `layer`'s keys, from 0: frequencies and planes are asked of the model's text
        decoder, whether and how a layer turns its keys by them of the keys."""
        frequencies = _frequencies(model, layer)
        if not frequencies:
            return CrossRope()
        text = model.config.get_text_config(decoder=True)
        rope = getattr(text, "rope_parameters", None) or {}
        is_interleaved = text.model_type.startswith("qwen3") or bool(rope.get("mrope_interleaved"))
        sections = rope.get("mrope_section")
        planes = _planes(sections, len(frequencies), is_interleaved=is_interleaved)
        first, second = _keys_of_places(model, layer)

        def distance(rope: CrossRope) -> float:
            turned = rope.rotated(first, torch.ones(1, 1, 1), rope.tensors(first.device))
            return float((turned - second).abs().sum())

        turning = [CrossRope(frequencies, layout, planes) for layout in get_args(Layout)]
        return min((CrossRope(), *turning), key=distance)

    @staticmethod
    def of_theta(theta: float, head_dim: int) -> "CrossRope":
        """As published heads have it, of a Llama's keys."""
        steps = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return CrossRope(tuple((1.0 / theta**steps).tolist()))

    @staticmethod
    def read(given: Mapping[str, Any]) -> "CrossRope":
        """What `as_json` wrote."""
        return CrossRope(
            tuple(given["frequencies"]), given["layout"], tuple(given.get("planes") or ())
        )

    @property
    def as_json(self) -> dict[str, Any]:
        return {
            "frequencies": list(self.frequencies),
            "layout": self.layout,
            "planes": list(self.planes),
        }

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(frequencies float32, planes int64), (half,) each, as `rotated` takes them."""
        planes = self.planes or (0,) * len(self.frequencies)
        return torch.tensor(self.frequencies, device=device), torch.tensor(planes, device=device)

    def rotated(self, query: Tensor, positions: Tensor, told: tuple[Tensor, Tensor]) -> Tensor:
        """`query` (batch, heads, seq, head_dim) at `positions` (planes, batch, seq), which are
        as many as `planes` names or more, or one for all; `told`: `tensors` of its device."""
        if not self.frequencies:
            return query
        frequencies, planes = told
        if positions.shape[0] == 1 or not self.planes:
            angles = positions[0].unsqueeze(-1).float() * frequencies
        else:  # (half, batch, seq): each frequency by its own plane
            angles = positions.index_select(0, planes).permute(1, 2, 0).float() * frequencies
        cos, sin = (part.unsqueeze(1).to(query.dtype) for part in (angles.cos(), angles.sin()))
        size = 2 * len(self.frequencies)
        turned, rest = query[..., :size], query[..., size:]
        if self.layout == "halves":
            first, second = turned.chunk(2, dim=-1)
            turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        else:
            first, second = turned[..., ::2], turned[..., 1::2]
            pairs = [first * cos - second * sin, second * cos + first * sin]
            turned = torch.stack(pairs, dim=-1).flatten(-2)
        return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def _frequencies(model: PreTrainedModel, layer: int) -> tuple[float, ...]:
    """Those of a layer's keys; empty where none are known."""
    text = model.config.get_text_config(decoder=True)
    if getattr(text, "qk_rope_head_dim", None):  # latent attention: behind what is not rotated
        return ()
    found = dict(model.get_decoder().named_buffers())
    kinds = getattr(text, "layer_types", None) or ()
    kind = kinds[layer] if layer < len(kinds) else None
    names = [f"rotary_emb.{kind}_inv_freq", "rotary_emb.inv_freq"]
    names += [name for name in found if name.endswith(".inv_freq")]
    name = next((name for name in names if name in found), None)
    return () if name is None else tuple(found[name].float().flatten().tolist())


@torch.no_grad()
def _keys_of_places(model: PreTrainedModel, layer: int) -> list[Tensor]:
    """A layer's keys, (1, kv_heads, 1, head_dim), of a text of one token at the first place and at
    the next: nothing else differs."""
    text, embedding = model.config.get_text_config(decoder=True), model.get_input_embeddings()
    device, found = input_device(embedding, embedding.weight), list[Tensor]()
    ids = torch.full((1, 1), text.vocab_size // 2, device=device)
    for place in range(2):
        cache = DynamicCache(config=text)
        told = {cache_keyword(model): cache, "position_ids": torch.full_like(ids, place)}
        model(input_ids=ids, use_cache=True, **told)
        found.append(cache.layers[layer].keys.cpu().double())
    return found


def _planes(sections: Any, count: int, *, is_interleaved: bool) -> tuple[int, ...]:
    """By which plane each frequency counts: one section of them after the other (Qwen2-VL, arXiv
    2409.12191), or the planes in turn as far as their sections reach (Qwen3-VL)."""
    if not sections:
        return ()
    if not is_interleaved:
        planes = [plane for plane, size in enumerate(sections) for _ in range(size)]
        return tuple(planes[:count])
    turns = [0] * count
    for plane in range(1, len(sections)):
        for place in range(plane, min(sections[plane] * len(sections), count), len(sections)):
            turns[place] = plane
    return tuple(turns)
