"""Trained heads as what they cost: weights read, products, keys of the target's, launches."""

from dataclasses import dataclass, replace

from mmspec.plan.method import Assumed, Gain
from mmspec.plan.roofline import BYTES, Forward

_GLIDE_TOKENS = 2048  # of the text's end, that a GliDe head keeps keys of its own for
_WINDOW = 4096  # newest tokens that a head's own layers look at, as `window` says unless it is set
_RES_BLOCK = 0.5  # of a layer's launches, that a step's Medusa heads are: a few products


@dataclass(frozen=True)
class TrainedHead:
    """One decoder layer on the target's hidden states and its head, once a level (EAGLE, arXiv
    2401.15077): a tree whose tokens a step are given."""

    name: str = "EAGLE-like head"
    range: tuple[float, float] = (2.5, 3.5)
    nodes: int = 60
    levels: int = 6
    vocab: int | None = None  # tokens of a head of its own (EAGLE-3, arXiv 2503.01840); None: the
    # target's
    assumed: Assumed = "tokens a step"

    def gain(self, target: Forward, value: float, *, context: int, batch: int) -> Gain:
        shape = target.shape
        layer, head = shape.layer_weights, float(shape.head_weights)
        if self.vocab is not None:  # attention reads embedding and feature side by side
            layer += shape.hidden * shape.head_dim * (shape.heads + 2 * shape.kv_heads)
            head = min(self.vocab, shape.vocab) * shape.hidden
        rows = batch * max(self.nodes // self.levels, 1)
        level = part_s(target, layers=layer, head=head, keys=0, rows=rows)
        step = target.seconds(self.nodes, context=context, batch=batch) + self.levels * level
        plain = target.seconds(1, context=context, batch=batch)
        return Gain(value * plain / step, self.levels, self.nodes)


@dataclass(frozen=True)
class GlideHead:
    """A layer that looks at the target's keys of one layer beside its own, and the target's head,
    once a level (GliDe, arXiv 2402.02082): a chain with candidates beside it."""

    name: str = "GliDe head"
    range: tuple[float, float] = (2.5, 3.5)
    nodes: int = 20
    levels: int = 5
    assumed: Assumed = "tokens a step"

    def gain(self, target: Forward, value: float, *, context: int, batch: int) -> Gain:
        shape = target.shape
        # Beside a layer like the target's the query and the output of the look at its keys.
        layer = shape.layer_weights + 2 * shape.hidden * shape.heads * shape.head_dim
        keys = context + min(context, _GLIDE_TOKENS)  # the target's and its own, a layer of each
        level = part_s(target, layers=layer, head=shape.head_weights, keys=keys, rows=batch)
        step = target.seconds(self.nodes, context=context, batch=batch) + self.levels * level
        plain = target.seconds(1, context=context, batch=batch)
        return Gain(value * plain / step, self.levels, self.nodes)


@dataclass(frozen=True)
class MedusaHeads:
    """A square matrix and a head of its own for each token further on, all of them once a step
    (Medusa, arXiv 2401.10774)."""

    name: str = "Medusa heads"
    range: tuple[float, float] = (2.0, 3.0)
    nodes: int = 64
    heads: int = 5
    assumed: Assumed = "tokens a step"

    def gain(self, target: Forward, value: float, *, context: int, batch: int) -> Gain:
        shape = target.shape
        weights = self.heads * (shape.hidden**2 + shape.head_weights)  # stored as the head is
        drafting = part_s(target, layers=0, head=weights, keys=0, rows=batch, launched=_RES_BLOCK)
        step = target.seconds(self.nodes, context=context, batch=batch) + drafting
        plain = target.seconds(1, context=context, batch=batch)
        return Gain(value * plain / step, self.heads, self.nodes)


@dataclass(frozen=True)
class BlockHead:
    """Some layers on as many of the target's states, and its head, once a step over a block of
    tokens (DFlash, arXiv 2602.06036)."""

    name: str = "DFlash head"
    range: tuple[float, float] = (3.5, 6.0)
    nodes: int = 60
    layers: int = 5
    block: int = 16
    assumed: Assumed = "tokens a step"

    def gain(self, target: Forward, value: float, *, context: int, batch: int) -> Gain:
        own = own_layers(target, self.layers, joined=self.layers, experts=False)
        drafting = own.seconds(self.block, context=min(context, _WINDOW), batch=batch)
        step = target.seconds(self.nodes, context=context, batch=batch) + drafting
        plain = target.seconds(1, context=context, batch=batch)
        return Gain(value * plain / step, min(self.block, self.nodes) - 1, self.nodes)


def own_layers(target: Forward, layers: int, *, joined: int, experts: bool) -> Forward:
    """A forward of layers as the target's are on the mean, which see all of a text, behind a matrix
    that makes one state of `joined` of them, and of its head. Without `experts` a layer is as wide
    as the target's is for one token."""
    shape, hardware = target.shape, target.hardware
    chosen = shape.expert_weights * shape.expert_share / shape.layers if experts else 0.0
    dense = layers * (shape.layer_weights - chosen) + joined * shape.hidden**2
    own = replace(
        shape,
        layers=layers,
        counted_weights=dense + shape.head_weights,
        expert_weights=layers * shape.expert_weights // shape.layers if experts else 0,
        sliding_layers=0,
        keyless_layers=0,
        shared_layers=0,
        state_bytes=0,
    )
    launches = replace(hardware, host_s=hardware.host_s * layers / shape.layers)
    return replace(target, shape=own, hardware=launches)


def part_s(
    target: Forward,
    *,
    layers: float,
    head: float,
    keys: int,
    rows: int,
    launched: float = 1.0,
) -> float:
    """Seconds of a forward of a token a row, by the same roofline as the target's own: `layers`
    weights in its layers' precision and `head` in its head's, attention to `keys` tokens of a
    layer like the target's, and, where launches count, those of `launched` of its layers."""
    shape, hardware = target.shape, target.hardware
    stored = layers * BYTES[target.weights] + head * BYTES[target.state]
    matrices = max(stored / hardware.bytes_per_s, 2 * (layers + head) * rows / hardware.gemm_flops)
    kept = shape.kv_values * keys * BYTES[target.state] * rows
    scores = 4 * shape.heads * shape.head_dim * keys * rows
    attention = max(kept / hardware.bytes_per_s, scores / hardware.attention_flops)
    return max(matrices + attention, hardware.host_s * launched / shape.layers)
