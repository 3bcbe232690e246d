"""Drafters with settings of their own, and ones that fail or lie."""

import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from adversary import AdversarySession
from draft_models import letters, shuffled, stranger
from eagle_heads import fitted
from families import FAMILIES
from glide_heads import drawn
from matrix import can_have, dflash, model_of
from medusa_heads import unfitted
from mtp_layers import mtp

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import Drafter, DrafterForTarget
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.dflash import DFlash
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.eagle import Eagle
from mmspec.drafters.glide import Glide
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.lookahead import Lookahead
from mmspec.drafters.medusa import Medusa
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.drafters.retrieval import Retrieval
from mmspec.drafters.token_recycling import TokenRecycling
from mmspec.state import Prefill, Prompt, Scores, Verdict
from mmspec.target import Target
from mmspec.target.self_draft import draft_forward
from mmspec.tree import TokenTree

from .cases import draw_prompt
from .shelf import Shelf

AnyDrafter = Drafter | DrafterForTarget
Truths = dict[tuple[tuple[int, ...], int, int], tuple[int, ...]]
FAULTS = ("none", "none", "start", "propose", "observe", "close", "wrong_root", "outside")


class Knowing:
    """Hides what plain decoding says in random trees, and may fail at a stage, now and then."""

    name = "knowing"

    def __init__(self, truths: Mapping[Any, Sequence[int]], fault: str, vocab_size: int) -> None:
        """`truths`: (prompt tokens, seed, sample) -> tokens."""
        self.truths, self.fault, self.vocab_size = truths, fault, vocab_size
        self.draw = random.Random(0)

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "KnowingSession":
        self.fail("start")
        ids = tuple(prompt.token_ids.tolist())
        truth = self.truths.get((ids, guide.seed, guide.sample), ())
        return KnowingSession(self, AdversarySession(ids, truth, self.vocab_size))

    def fail(self, stage: str) -> None:
        if self.fault == stage and self.draw.random() < 0.25:
            raise RuntimeError(f"the drafter fails at {stage}")


class KnowingSession:
    def __init__(self, drafter: Knowing, trees: AdversarySession) -> None:
        self._drafter, self._trees = drafter, trees

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        self._drafter.fail("propose")
        tree = self._trees.propose(tokens, budget)
        names = ("", *[self._drafter.name] * (tree.num_nodes - 1))
        ids, fault = tree.tokens, self._drafter.fault
        if self._drafter.draw.random() < 0.1:
            if fault == "wrong_root":
                ids = ((ids[0] + 1) % self._drafter.vocab_size, *ids[1:])
            if fault == "outside":
                ids = (*ids[:-1], self._drafter.vocab_size)
        return TokenTree(ids, tree.parents, tree.confidence, names)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        self._drafter.fail("observe")

    def close(self) -> None:
        self._drafter.fail("close")


def draw_drafters(
    draw: random.Random, family: str, dtype: str, truths: Truths, target: Target, shelf: Shelf
) -> list[AnyDrafter]:
    """`shelf` is filled where one of them reads from it."""
    chosen: dict[str, AnyDrafter] = {}
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        drafter = _draw_drafter(draw, family, dtype, truths, target, shelf)
        chosen[drafter.name] = drafter
    if draw.random() < 0.3:  # that something is accepted, whatever else is drafted
        chosen.setdefault(Knowing.name, Knowing(truths, "none", target.vocab_size))
    return list(chosen.values())


def _draw_drafter(
    draw: random.Random, family: str, dtype: str, truths: Truths, target: Target, shelf: Shelf
) -> AnyDrafter:
    vocab_size = target.vocab_size
    sure = draw.choice([0.0, 0.0, 0.05, 0.3])
    kind = draw.choice(
        ["knowing"] * 6
        + ["prompt_lookup", "retrieval", "retrieval", "draft_model", "compressed_kv", "layer_skip"]
        + ["lookahead", "eagle", "glide", "medusa", "cascade", "draft_model", "compressed_kv"]
        + ["dflash", "token_recycling"]
        + ["mtp"] * can_have(family, "mtp")
    )
    if kind == "prompt_lookup":
        return lookup(draw, sure)
    if kind == "retrieval":
        sources = draw.sample(["online", "generated", "suffix", "dense"], draw.randint(1, 4))
        if not shelf.is_there and {"suffix", "dense"} & {*sources}:
            asked = [draw_prompt(draw, family, most=shelf.most) for _ in range(draw.randint(1, 2))]
            shelf.fill(asked, is_dense="dense" in sources)
        return Retrieval(
            [shelf.folder] if shelf.is_there else [],
            sources=sources,
            min_confidence=sure,
            min_match=draw.choice([1, 3]),
            max_match=draw.choice([3, 32]),
            max_places=draw.choice([1, 3, 16]),
            max_depth=9,
            generated_bytes=draw.choice([0, 2**10, 2**14, 2**26, 2**26]),
            generated_path=draw.choice([None, None, shelf.folder.parent / "generated"]),
        )
    if kind == "draft_model":
        name = draw.choice(_DRAFT_MODELS)
        sees = name == "llava" or (name == "same" and FAMILIES[family].kind == "vision")
        return DraftModel(
            *draft_model(name, family, dtype),
            images=draw.choice(["auto", "auto", "omit", "caption"] + ["give", "thin"] * sees),
            thin_keep=draw.choice([0.25, 0.7, 1.0]),
            caption=draw.choice([None, "a cat"]),
            **growth_of(draw, sure),
        )
    if kind == "compressed_kv":
        return compressed(draw, sure)
    if kind == "layer_skip":
        growth = growth_of(draw, sure)
        if target.state_kinds or draw.random() < 0.4:
            layers = [draw.randrange(2)]
            return LayerSkip(layers=layers, weights=draw.choice(["same", "int8"]), **growth)
        return LayerSkip(
            skip=draw.choice([0.2, 0.45, 0.9]),
            trials=draw.choice([0, 3, 48]),
            trial_tokens=draw.choice([2, 5, 30]),
            trial_every=2,
            **growth,
        )
    if kind == "lookahead":
        return Lookahead(
            window=draw.randint(1, 8),
            ngram=draw.randint(2, 5),
            guess_set=draw.randint(1, 8),
            pool_from_prompt=draw.random() < 0.7,
        )
    if kind == "token_recycling":
        return TokenRecycling(
            top_k=draw.choice([1, 4, 18]),
            max_depth=draw.randint(1, 6),
            min_confidence=sure,
            contexts=draw.choice([1, 3, 40, 65_536]),
        )
    model = model_of(family, dtype)
    if kind == "eagle":
        head = fitted(model, draw.choice([1, 3]))
        return Eagle(head, window=draw.choice([16, 20, 4096]), **growth_of(draw, sure))
    if kind == "mtp":
        return mtp(model, window=draw.choice([16, 20, 4096]), **growth_of(draw, sure))
    if kind == "glide":
        growth = growth_of(draw, sure)
        return Glide(glide_head(family, dtype), prompt_tokens=draw.choice([1, 16, 512]), **growth)
    if kind == "dflash":
        growth = growth_of(draw, sure)
        return DFlash(
            dflash(family, dtype),
            block=draw.choice([None, 2, 5]),
            top_k=draw.choice([1, 4, 18]),
            min_confidence=sure,
            window=draw.choice([16, 20, 4096]),
            draw=growth["draw"],
            profile=growth["profile"][:1],
        )
    if kind == "medusa":
        growth = growth_of(draw, sure)
        heads = unfitted(model, spread=0.02, has_own_heads=draw.random() < 0.5)
        tree = [[r] for r in range(12)] + [[0, 0], [1, 0], [0, 1]] if draw.random() < 0.5 else []
        grown = {} if tree else {"draw": growth["draw"], "profile": growth["profile"]}
        return Medusa(
            heads,
            tree=tree,
            max_depth=draw.choice([None, 1, 2]) if not tree else None,
            top_k=draw.choice([1, 4, 12]),
            min_confidence=sure,
            **grown,
        )
    if kind == "cascade":
        lower: AnyDrafter = draw.choice(
            [
                lookup(draw, sure),
                knowing(draw, truths, vocab_size),
                Retrieval(sources=["online", "generated"], min_match=1, min_confidence=sure),
                DraftModel(*draft_model("padded", family, dtype), max_depth=3),
            ]
        )
        return Cascade(
            lower,
            compressed(draw, sure),
            max_depth=draw.randint(1, 9),
            max_forwards=draw.randint(1, 4),
            lower_nodes=draw.randint(1, 9),
        )
    return knowing(draw, truths, vocab_size)


def knowing(draw: random.Random, truths: Truths, vocab_size: int) -> Knowing:
    return Knowing(truths, draw.choice(FAULTS), vocab_size)


def lookup(draw: random.Random, sure: float) -> PromptLookup:
    return PromptLookup(
        min_match=draw.choice([1, 2]),
        max_match=draw.choice([2, 32]),
        max_matches=draw.choice([1, 16]),
        min_confidence=sure,
        max_depth=8,
    )


def growth_of(draw: random.Random, sure: float) -> dict[str, Any]:
    """What every tree that a model grows may be told."""
    growth: dict[str, Any] = {
        "max_depth": draw.choice([1, 3, 6]),
        "top_k": draw.choice([1, 2, 5]),
        "min_confidence": sure,
        "branching": draw.choice(["best", "cape"]),
        **draw.choice([{}, {"cape_thresholds": [0.5], "cape_widths": [3, 1]}]),
        "draw": draw.choice(["coupled"] * 4 + ["sample"]),
        "profile": draw.choice([(), (2, 1), (1, 1, 3)]),
    }
    return growth


def compressed(draw: random.Random, sure: float) -> CompressedKV:
    forward = None
    if draw.random() < 0.3:
        weights, skipped = draw.choice([("int8", []), ("same", [0]), ("int4", [1])])
        forward = draft_forward(weights=weights, skipped=skipped)
    growth = growth_of(draw, sure)
    policies = ["window", "snapkv", "topk_chunks", "visual", "window+snapkv"]
    return CompressedKV(
        policy=draw.choice(policies),
        budget=draw.choice([8, 12, 200]),
        recent=draw.choice([1, 5, 20]),
        max_share=draw.choice([1.0, 1.0, 0.5]),
        width=draw.randint(1, growth["top_k"]),
        forward=forward,
        **growth,
    )


_DRAFT_MODELS = ("same", "padded", "other", "gemma3_text", "gpt2", "lfm2", "qwen3_next", "llava")


@cache
def draft_model(name: str, family: str, dtype: str) -> tuple[Any, Any]:
    if name == "same":
        return model_of(family, dtype), letters()
    if name == "padded":
        return stranger(119), letters()
    if name == "other":
        return shuffled(stranger(), letters())
    return FAMILIES[name].build(torch.float64), letters()


@cache
def glide_head(family: str, dtype: str) -> Any:
    head = drawn(Target(model_of(family, dtype)), num_layers=2)
    head.model.norm.weight.mul_(0.1)
    return head
