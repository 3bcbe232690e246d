"""Each drafter as what it costs and how much of it is accepted: speed beside plain decoding.

The share that is accepted depends on models and text: it is assumed, from a low to a high value,
and belongs to the result. Plain decoding is one node a step on the same machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mmspec.plan.heads import BlockHead, GlideHead, MedusaHeads, TrainedHead, own_layers
from mmspec.plan.method import LOOKUP_S, Assumed, Gain, Method
from mmspec.plan.roofline import Forward, Precision
from mmspec.plan.shape import ModelShape

_MAX_DEPTH = 16
_MTP_DEPTH = 4  # as drafter.mtp.max_depth says unless it is set
_VIEW_SHARE = 4  # a view shows a quarter of a short text at most


@dataclass(frozen=True)
class Copying:
    """What was said before is drafted again (prompt lookup, a datastore), or what the target held
    likely there (token recycling): no forward."""

    name: str = "lookup, retrieval"
    range: tuple[float, float] = (1.5, 2.5)
    nodes: int = 16
    assumed: Assumed = "tokens a step"

    def gain(self, target: Forward, value: float, *, context: int, batch: int) -> Gain:
        step = target.seconds(self.nodes, context=context, batch=batch) + LOOKUP_S
        plain = target.seconds(1, context=context, batch=batch)
        return Gain(value * plain / step, self.nodes - 1, self.nodes)


@dataclass(frozen=True)
class Chain:
    """A forward a token: another model, the target itself over a part of its KV, with fewer layers
    or in a lower precision, or the layer that it brings for the tokens to come. Each token is
    accepted with the same probability, given that those before it were."""

    name: str
    draft: Forward
    range: tuple[float, float]
    view: int | None = None  # tokens of the text that a draft sees; None: all
    max_depth: int = _MAX_DEPTH
    below: Copying | None = None  # drafts for the draft (a cascade, TriForce: arXiv 2404.11912)
    assumed: Assumed = "acceptance"

    def gain(self, target: Forward, value: float, *, context: int, batch: int) -> Gain:
        plain = target.seconds(1, context=context, batch=batch)
        gains = []
        for depth in range(1, self.max_depth + 1):
            step = self.drafting_s(depth, value, context=context, batch=batch)
            step += target.seconds(depth + 1, context=context, batch=batch)
            gains.append(Gain(expected_tokens(value, depth) * plain / step, depth, depth + 1))
        return max(gains, key=lambda gain: gain.ratio)

    def drafting_s(self, depth: int, value: float, *, context: int, batch: int) -> float:
        """Seconds to draft a path of `depth` tokens."""
        seen = context if self.view is None else min(self.view, context // _VIEW_SHARE)
        seen += depth // 2  # of the drafted path itself, half on the mean
        if self.below is None:
            return depth * self.draft.seconds(1, context=seen, batch=batch)
        low, high = self.range
        level = 0.0 if high == low else (value - low) / (high - low)
        tokens = self.below.range[0] + level * (self.below.range[1] - self.below.range[0])
        step = self.draft.seconds(self.below.nodes, context=seen, batch=batch) + LOOKUP_S
        return depth / tokens * step


@dataclass(frozen=True)
class Lookahead:
    """The target's own guesses, scored beside what they have brought (arXiv 2402.02057): no
    forward of its own, and a tree of W (N - 1) - 1 nodes of the window and G (N - 1) of n-grams."""

    name: str = "lookahead"
    range: tuple[float, float] = (1.5, 2.3)
    window: int = 15  # W
    ngram: int = 5  # N
    guess_set: int = 15  # G
    assumed: Assumed = "tokens a step"

    @property
    def nodes(self) -> int:
        """That a step scores, node 0 among them."""
        levels = self.ngram - 1
        return self.window * levels + self.guess_set * levels

    def gain(self, target: Forward, value: float, *, context: int, batch: int) -> Gain:
        step = target.seconds(self.nodes, context=context, batch=batch) + LOOKUP_S
        plain = target.seconds(1, context=context, batch=batch)
        return Gain(value * plain / step, self.ngram - 1, self.nodes)


def expected_tokens(acceptance: float, depth: int) -> float:
    """Tokens of a step with a path of `depth` (Leviathan et al., arXiv 2211.17192, eq. 1)."""
    if acceptance >= 1.0:
        return depth + 1.0
    return (1 - acceptance ** (depth + 1)) / (1 - acceptance)


def standard_methods(
    target: Forward, *, draft: ModelShape | None = None, view: int = 4096, skip: float = 0.45
) -> list[Method]:
    """Those that mmspec has or will have, for one target. Draft weights in fewer bits leave the
    head as it is on a GPU; on a CPU that head is in int8 as well."""
    is_cpu = target.weights == "fp32"
    precisions: tuple[Precision, ...] = ("int8", "int4") if is_cpu else ("fp8", "int4")
    low_bits = [replace(target, weights=one, has_int8_head=is_cpu) for one in precisions]
    own = (0.9, 1.0)
    copying = Copying(nodes=6 if is_cpu else 16)  # a CPU computes each node, a GPU few for nothing
    quickest = low_bits[-1]
    methods: list[Method] = [
        *(Chain(f"compressed_kv, {one.weights}", one, own, view) for one in (target, *low_bits)),
        *(
            Chain(f"cascade: lookup, compressed_kv {one.weights}", one, own, view, below=copying)
            for one in (target, quickest)
        ),
        Chain(f"layer_skip {skip:.0%}", replace(target, layer_share=1 - skip), (0.7, 0.9)),
        TrainedHead(nodes=8 if is_cpu else 60),
        TrainedHead("EAGLE-3 head", (3.0, 5.0), nodes=8 if is_cpu else 60, vocab=32_000),
        GlideHead(nodes=6 if is_cpu else 20),
        MedusaHeads(nodes=8 if is_cpu else 64),
        BlockHead(nodes=8 if is_cpu else 60),
        copying,
        Copying("token recycling", (1.4, 2.4), nodes=6 if is_cpu else 32),
        # On a CPU the smallest window that finds n-grams of three.
        Lookahead(window=2, ngram=3, guess_set=2) if is_cpu else Lookahead(),
    ]
    if target.shape.mtp_layers:
        layer = own_layers(target, 1, joined=2, experts=True)
        methods.append(Chain("mtp", layer, (0.6, 0.8), max_depth=_MTP_DEPTH))
    if draft is not None:
        methods.append(Chain(f"draft model {draft.name}", target.of(draft), (0.6, 0.8)))
    return methods


def with_range(methods: Sequence[Method], name: str, low: float, high: float) -> list[Method]:
    """The methods, with another range for those whose names begin with `name`."""
    return [
        replace(method, range=(low, high)) if method.name.startswith(name) else method  # type: ignore[type-var]
        for method in methods
    ]
