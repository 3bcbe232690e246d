"""The exactness matrix: every family x drafter x sampling x batch x layout, against plain decoding.

`run_cell` is one comparison; `all_cells` is the whole matrix, `covering_cells` a part of it in
which every family meets every kind of drafter, and every three families every pair of options.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import combinations, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from adversary import Adversary
from dflash_heads import unfitted as drafting_blocks
from draft_models import letters, shuffled, stranger
from eagle_heads import fitted
from families import FAMILIES, prompt_inputs
from families.hybrid import DECODABLE_HYBRID
from families.vision import FIRST_MEDIA_TOKEN
from glide_heads import drawn
from medusa_heads import unfitted
from mtp_layers import mtp
from stores import write_store
from transformers import PreTrainedModel

import mmspec.build
from mmspec.build import AnyDrafter
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.base import Drafter, DrafterForTarget
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.dflash import DFlash, DFlashHead
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.eagle import Eagle
from mmspec.drafters.glide import Glide
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.lookahead import Lookahead
from mmspec.drafters.medusa import Medusa
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.drafters.retrieval import Retrieval
from mmspec.drafters.token_recycling import TokenRecycling
from mmspec.engine import Engine
from mmspec.indexing import PromptedReader, collect_keys
from mmspec.inputs import from_inputs
from mmspec.requests import Request, Result
from mmspec.state import Prompt
from mmspec.target import Target

COMPRESSED = ("window", "snapkv", "topk_chunks", "visual", "composed")
# draft_same: the target itself; draft_padded: a text-only stranger with more ids than the target;
# draft_other: one with another tokenizer. retrieval_*: one source each, that holds the plain text
# and look-alikes of it. compressed_*: the target over a view by that policy. eagle*: heads that
# were fitted to the target, as mtp is. medusa: heads that speak through the target's lm_head;
# medusa_own: through their own. glide, dflash: a head that knows nothing, with many candidates.
RETRIEVALS = ("retrieval_suffix", "retrieval_dense", "retrieval_online", "retrieval_generated")
DRAFTERS = (
    "prompt_lookup",
    "adversary",
    "draft_same",
    "draft_padded",
    "draft_other",
    "adversary+draft_same",
    *RETRIEVALS,
    "layer_skip",
    "eagle1",
    "eagle3",
    "mtp",
    "glide",
    *(f"compressed_{policy}" for policy in COMPRESSED),
    "cascade",
    "lookahead",
    "prompt_lookup+lookahead",
    "token_recycling",
    "medusa",
    "medusa_own",
    "dflash",
)
# Parts of the names of those that draft truths, or so many candidates that some are true.
KNOWING = (
    "adversary",
    "draft_same",
    "retrieval",
    "compressed_",
    "cascade",
    "lookahead",
    "eagle",
    "mtp",
    "glide",
    "medusa_own",
)
# Of those the ones that guess: a short text that is warped may prove all of it wrong.
GUESSING = ("lookahead", "glide")
# Those that draft by a model take longer, and copies are alike whatever they are copied from: of
# each of these one a family, in turn.
IN_TURN = (
    ("draft_same",),
    ("draft_padded", "draft_other"),
    ("cascade", *(f"compressed_{policy}" for policy in COMPRESSED)),
    ("lookahead", "prompt_lookup+lookahead", "token_recycling"),
    ("eagle1", "glide", "eagle3", "mtp"),
    ("medusa", "medusa_own", "dflash"),
    ("retrieval_suffix", "retrieval_online", "retrieval_generated"),
    ("retrieval_dense",),
)
WIDE_HYBRIDS = ("qwen3_next", "qwen3_5")
# Whose decoder is built otherwise than the layer, or whose layers all keep a running state.
WITHOUT_MTP = ("gpt2", "bloom", "mpt", "lfm2", "falcon_h1")
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "t1": {"temperature": 1.0, "top_k": 0},
    "warped": {"temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.2},
}
BATCHES = (1, 3)
CONTROLLERS = ("fixed", "auto")
LAYOUTS = {
    "text": ("text",),
    "vision": ("text", "image_first", "image_middle", "image_last"),
    "audio": ("text", "audio"),
}
# What is left of earlier requests, and how a prompt is cut: (chunk, whether stores are on).
REUSES: dict[str, tuple[int | None, bool]] = {
    "none": (None, False),
    "chunks": (7, False),
    "chunks_and_prefixes": (11, True),
}
NEW_TOKENS = 20
Probing = Callable[[PreTrainedModel, DecodeConfig], tuple[Target, Any]]
PROMPT_TOKENS = (40, 17, 29)  # of a batch's rows, images not counted


@dataclass(frozen=True)
class Cell:
    """One comparison of speculative with plain decoding."""

    family: str
    drafter: str
    sampling: str
    batch: int
    layout: str
    controller: str = "fixed"
    reuse: str = "none"
    dtype: Literal["float64", "float32", "bfloat16"] = "float64"
    exactness: str = "standard"  # "bitwise": logits are compared too, bit by bit

    def __str__(self) -> str:
        return "-".join(map(str, (self.family, *self.options, self.dtype)))

    @property
    def options(self) -> tuple[str, str, int, str, str]:
        return (
            self.drafter,
            self.sampling,
            self.batch,
            self.layout,
            self.controller,
            self.reuse,
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: no mismatch, or where each row's first one is."""

    cell: Cell
    mismatches: tuple[str, ...]
    tokens: int
    accepted: int  # drafted tokens that were accepted: a cell without any proves little
    reused: int  # prompt tokens taken from the store


def all_cells(dtype: Literal["float64", "float32"] = "float64") -> list[Cell]:
    return [
        Cell(family.name, *options, dtype=dtype)
        for family in FAMILIES.values()
        for options in product(
            DRAFTERS, SAMPLINGS, BATCHES, LAYOUTS[family.kind], CONTROLLERS, REUSES
        )
        if can_have(family.name, options[0])
    ]


def can_have(family: str, drafter: str) -> bool:
    return drafter != "mtp" or family not in WITHOUT_MTP


@cache
def covering_cells() -> tuple[Cell, ...]:
    """Of each family one cell of each kind of `IN_TURN`, with those options of which its drafter
    has met the fewest pairs before; and every pair of the options of the other drafters once for
    every three families that have the same, who share a cover of them (two, where there are no
    more). Each time they have it with the options' names exchanged, so that together they meet
    most triples too. Of the hybrids, which keep their states alike, all but `WIDE_HYBRIDS` have
    fewer drafters."""
    chosen: list[Cell] = []
    met: Counter[tuple[tuple[object, ...], ...]] = Counter()
    pairs_met: Counter[tuple[tuple[int, object], ...]] = Counter()
    for number, (name, family) in enumerate(FAMILIES.items()):
        is_narrow = has_states(name) and name not in WIDE_HYBRIDS
        rest = (SAMPLINGS, BATCHES, LAYOUTS[family.kind], CONTROLLERS, REUSES)
        for kind in IN_TURN[:-2] if is_narrow else IN_TURN:
            kind = [drafter for drafter in kind if can_have(name, drafter)]
            fixed = product((kind[number % len(kind)],), *rest[:3], ("fixed",), REUSES)
            pairs = {options: [*combinations(enumerate((name, *options)), 2)] for options in fixed}
            rarest = min(pairs, key=lambda o: _times_met(pairs[o], pairs_met))
            pairs_met.update(pairs[rarest])
            chosen.append(Cell(name, *rarest))
        apart = {drafter for kind in IN_TURN for drafter in kind}
        own = [d for d in DRAFTERS if d not in apart]
        own = [d for d in own if d in ("adversary", "layer_skip")] if is_narrow else own
        axes = tuple(tuple(axis) for axis in (own, *rest))
        sharing = 2 if family.kind == "audio" else 3
        turn, part = divmod(met[axes], sharing)
        met[axes] += 1
        for options in sorted(_cover(axes), key=lambda o: own.index(o[0]))[part::sharing]:
            exchanged = (
                axis[(axis.index(option) + turn * step) % len(axis)]
                for step, (axis, option) in enumerate(zip(axes, options, strict=True), start=1)
            )
            chosen.append(Cell(name, *exchanged))
    return tuple(chosen)


def _times_met(
    pairs: Sequence[tuple[tuple[int, object], ...]],
    met: Mapping[tuple[tuple[int, object], ...], int],
) -> tuple[int, int]:
    """How often pairs were met: those of the family, axis 0, and of the drafter, before all."""
    own = [pair for pair in pairs if pair[0][0] < 2]
    return sum(met[pair] for pair in own), sum(met[pair] for pair in pairs)


@cache
def _cover(axes: tuple[tuple[Any, ...], ...]) -> tuple[tuple[Any, ...], ...]:
    """Choices of one option an axis that have every pair of options; greedily the most new pairs,
    and of those the one whose options were chosen least."""
    pairs = {options: {*combinations(enumerate(options), 2)} for options in product(*axes)}
    missing = set().union(*pairs.values())
    chosen: list[tuple[Any, ...]] = []
    while missing:
        uses = Counter(option for options in chosen for option in enumerate(options))
        worth = {
            options: (len(missing & found), -sum(map(uses.__getitem__, enumerate(options))))
            for options, found in pairs.items()
        }
        best = max(worth, key=worth.__getitem__)
        missing -= pairs[best]
        chosen.append(best)
    return tuple(chosen)


def must_accept(cell: Cell) -> bool:
    """Whether the cell proves little if no drafted token is accepted."""
    guesses = any(name in cell.drafter for name in GUESSING) and cell.sampling == "warped"
    if cell.family == "mpt":  # scores one path: of several candidates the likeliest alone
        guesses |= any(name in cell.drafter for name in (*GUESSING, "medusa_own"))
    if cell.drafter == "medusa_own":  # right once in seven steps or so
        guesses |= cell.batch == 1
    knows = any(name in cell.drafter for name in KNOWING) and not guesses
    return knows and cell.controller == "fixed"


def run_cell(
    cell: Cell, *, max_nodes: int = 20, choosing: str = "auto", joins: bool = False
) -> Outcome:
    """Decodes the cell's requests with its drafter, together, and each alone without one. `joins`:
    they come one after the other, while those before are decoded, and another one leaves."""
    requests = _requests(cell)
    # In bitwise mode the budget and the chunks are a part of what both have in common.
    common = (cell.exactness, max_nodes, cell.reuse) if cell.exactness == "bitwise" else ()
    plain = [
        _plain(cell.family, cell.dtype, cell.sampling, *place, *common) for place in _places(cell)
    ]
    with TemporaryDirectory() as folder:
        drafters = [
            _drafter(name, cell, requests, plain, Path(folder)) for name in cell.drafter.split("+")
        ]
        engine = _engine(
            cell.family,
            cell.dtype,
            max_nodes,
            drafters,
            cell.controller,
            cell.reuse,
            choosing,
            cell.exactness,
        )
        if REUSES[cell.reuse][1]:
            for request in requests:
                engine.generate(_relatives(request), max_new_tokens=3)
        if cell.drafter == "retrieval_generated":
            engine.generate(requests)
        if cell.drafter == "retrieval_online":
            requests = [
                _with_texts(request, cell, result)
                for request, result in zip(requests, plain, strict=True)
            ]
        results = _joining(engine, requests) if joins else engine.generate(requests)
    mismatches = [
        difference
        for row, (expected, result) in enumerate(zip(plain, results, strict=True))
        if (difference := _difference(row, expected, result))
    ]
    histograms = [result.stats.accepted_lengths for result in results]
    accepted = sum(length * count for h in histograms for length, count in h.items())
    tokens = sum(len(result.tokens) for result in results)
    reused = sum(result.stats.reused_tokens for result in results)
    return Outcome(cell, tuple(mismatches), tokens, accepted, reused)


def _joining(engine: Engine, requests: Sequence[Request]) -> list[Result]:
    """The answers of requests that join another one, which leaves before the last of them ends."""
    stays = [True]
    leaving = replace(
        _relatives(requests[0])[0],
        max_new_tokens=500,
        ignore_eos=True,
        is_wanted=lambda: stays[0],
    )
    arriving: list[Request | None] = [leaving]
    for request in requests:
        arriving += [None, None, request]
    found: dict[int, Result] = {}
    for step in engine.stream_each(arriving):
        if step.index == len(requests) and step.num_tokens:
            stays[0] = False
        if step.result is not None:
            found[step.index] = step.result
    gone = found.pop(0)
    assert gone.finish_reason == "closed" and gone.tokens, "it was there for all to join"
    return [found[index] for index in sorted(found)]


def _relatives(request: Request) -> list[Request]:
    """Requests whose KV may be mistaken for this one's: other text from the middle on; the same
    tokens over other pixels."""
    inputs = dict(request.prompt)  # type: ignore[arg-type]
    ids = inputs["input_ids"]
    late = torch.arange(ids.shape[1]) >= ids.shape[1] * 2 // 3
    other_text = torch.where(late & (ids < FIRST_MEDIA_TOKEN), (ids + 8) % 90 + 3, ids)
    pixels = {name: -value for name, value in inputs.items() if value.is_floating_point()}
    related = [{**inputs, "input_ids": other_text}, *([{**inputs, **pixels}] if pixels else [])]
    return [replace(request, prompt=prompt) for prompt in related]


def _difference(row: int, expected: Result, result: Result) -> str | None:
    """None, or where the row's texts part."""
    if result.error is not None:
        return f"row {row}: {type(result.error).__name__}: {result.error}"
    if result.tokens == expected.tokens and result.finish_reason == expected.finish_reason:
        return _differing_bits(row, expected, result)
    pairs = zip(expected.tokens, result.tokens, strict=False)
    first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if first is None:
        return f"row {row}: {len(expected.tokens)} tokens plain, {len(result.tokens)} speculative"
    return (
        f"row {row}: first mismatch at token {first}: plain {expected.tokens[first]}, "
        f"speculative {result.tokens[first]}"
    )


def _differing_bits(row: int, expected: Result, result: Result) -> str | None:
    if expected.logits is None or result.logits is None:
        return None
    differing = (expected.logits != result.logits).any(dim=1).nonzero().squeeze(1).tolist()
    if differing or expected.logprobs != result.logprobs:
        return f"row {row}: the same tokens, but other bits of logits at tokens {differing}"
    return None


@cache
def model_of(family: str, dtype: str) -> Any:
    return FAMILIES[family].build(getattr(torch, dtype))


def has_states(family: str) -> bool:
    return family in {one.name for one in DECODABLE_HYBRID}


def _engine(
    family: str,
    dtype: str,
    max_nodes: int,
    drafters: Sequence[AnyDrafter],
    controller: str = "fixed",
    reuse: str = "none",
    choosing: str = "auto",
    exactness: str = "standard",
) -> Engine:
    chunk, has_stores = REUSES[reuse]
    config = Config(
        decode=DecodeConfig(
            max_nodes=max_nodes,
            max_rows=3,
            controller=controller,
            prefill_chunk=chunk,
            choosing=choosing,
            exactness=exactness,
        ),
        cache=CacheConfig() if has_stores else CacheConfig(prefix_bytes=0, feature_bytes=0),
    )
    return engine_of(family, dtype, config=config, drafters=drafters)


def engine_of(
    family: str, dtype: str = "float64", *, config: Config, drafters: Sequence[AnyDrafter]
) -> Engine:
    """As `mmspec.load` gives it, but that a model is probed once: that takes as long as a cell."""
    model = model_of(family, dtype)
    probed = _probed(mmspec.build.probed_target, model, config.decode.exactness)
    return mmspec.build.build_engine(config, model, letters(), drafters, probed=probed)


@lru_cache(64)
def _probed(probed_target: Probing, model: PreTrainedModel, exactness: str) -> tuple[Target, Any]:
    """By `probed_target` itself, in whose place tests put another."""
    return probed_target(model, DecodeConfig(exactness=exactness))


def _drafter(
    name: str, cell: Cell, requests: Sequence[Request], plain: Sequence[Result], folder: Path
) -> Drafter | DrafterForTarget:
    if name == "retrieval_dense":
        return dense_retrieval(cell, requests, plain, folder / "store")
    if name == "retrieval_suffix":
        texts = [text for pair in zip(requests, plain, strict=True) for text in known_texts(*pair)]
        write_store(folder / "store", texts, tokenizer=letters())
        return Retrieval(folder / "store", sources=["suffix"], min_confidence=0.0)
    if name.startswith("retrieval_"):
        source = name.removeprefix("retrieval_")
        return Retrieval(sources=[source], min_confidence=0.0, min_match=3, max_depth=8)
    if name.startswith("compressed_"):
        policy = name.removeprefix("compressed_")
        return _compressed("window+snapkv" if policy == "composed" else policy)
    if name == "cascade":
        return Cascade(_lookup(), _compressed("topk_chunks"), max_depth=6, lower_nodes=8)
    if name.startswith("draft_"):
        return draft_model(name, cell.family, cell.dtype)
    if name.startswith("eagle"):
        head = fitted(model_of(cell.family, cell.dtype), int(name.removeprefix("eagle")))
        return Eagle(head, top_k=6, max_depth=3, min_confidence=0.0)
    if name == "mtp":
        return mtp(model_of(cell.family, cell.dtype), top_k=6, max_depth=3, min_confidence=0.0)
    if name == "glide":
        return glide(cell.family, cell.dtype)
    if name == "layer_skip":  # its trials begin early, so that rows' keys are put aside and back
        return LayerSkip(min_confidence=0.0, max_depth=3, trial_tokens=5, trial_every=2)
    if name.startswith("medusa"):
        return medusa(cell.family, cell.dtype, has_own_heads=name == "medusa_own")
    if name == "dflash":
        return DFlash(dflash(cell.family, cell.dtype), top_k=18, min_confidence=0.0)
    if name == "lookahead":
        return Lookahead(window=6, ngram=3, guess_set=6)
    if name == "token_recycling":
        return TokenRecycling(top_k=12, max_depth=3, min_confidence=0.0)
    if name == "prompt_lookup":  # eager: random text seldom repeats itself at length
        return _lookup()
    truths = {
        tuple(request.prompt["input_ids"][0].tolist()): result.tokens  # type: ignore[index,call-overload]
        for request, result in zip(requests, plain, strict=True)
    }
    return Adversary(truths, model_of(cell.family, cell.dtype).config.get_text_config().vocab_size)


def known_texts(request: Request, plain: Result) -> list[tuple[int, ...]]:
    """What plain decoding said, after the prompt's last tokens, and the same with every fourth
    token replaced: copies part ways there."""
    ids = request.prompt["input_ids"][0].tolist()  # type: ignore[index,call-overload]
    lead = tuple(token if token < FIRST_MEDIA_TOKEN else -1 for token in ids[-4:])
    wrong = (3 + token % 80 if n % 4 == 3 else token for n, token in enumerate(plain.tokens))
    return [(*lead, *plain.tokens), (*lead, *wrong)]


def _with_texts(request: Request, cell: Cell, plain: Result) -> Request:
    """The same request with `known_texts` beside its prompt."""
    config = model_of(cell.family, cell.dtype).config
    prompt = from_inputs(request.prompt, config)  # type: ignore[arg-type]
    texts = tuple(known_texts(request, plain))
    return replace(request, prompt=replace(prompt, draft_texts=texts))


def _lookup() -> PromptLookup:
    return PromptLookup(min_match=1, min_confidence=0.0, max_depth=6)


def _compressed(policy: str) -> CompressedKV:
    return CompressedKV(
        policy=policy,
        budget=12,
        recent=5,
        max_share=1.0,
        max_depth=4,
        top_k=2,
        width=2,
        min_confidence=0.0,
    )


@cache
def draft_model(name: str, family: str, dtype: str) -> DraftModel:
    """One draft model for all cells of a family: it holds no request's state."""
    if name == "draft_same":
        return DraftModel(model_of(family, dtype), letters(), min_confidence=0.0)
    if name == "draft_padded":
        return DraftModel(stranger(119), letters(), min_confidence=0.0)
    return DraftModel(*shuffled(stranger(), letters()), min_confidence=0.0)


@cache
def medusa(family: str, dtype: str, *, has_own_heads: bool) -> Medusa:
    """Heads that know nothing, and a tree so wide for the vocabulary that those with lm_heads of
    their own, which prefer none of the tokens much, are right at times."""
    tree = [[rank] for rank in range(16)] + [[0, 0], [1, 0], [2, 0], [0, 1]]
    heads = unfitted(model_of(family, dtype), spread=0.02, has_own_heads=has_own_heads)
    return Medusa(heads, tree=tree)


def dflash(family: str, dtype: str) -> DFlashHead:
    """It prefers no token by much, so that of many some are right at times."""
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 9}
    head = drafting_blocks(model_of(family, dtype), **kinds)
    head.norm.weight.mul_(0.1)
    return head


def glide(family: str, dtype: str) -> Glide:
    """A head of two layers that prefers no token by much, so that warping leaves it many; every
    fourth family's branches by the likeliest paths."""
    head = drawn(Target(model_of(family, dtype)), num_layers=2)
    head.model.norm.weight.mul_(0.1)
    if list(FAMILIES).index(family) % 4 == 1:
        return Glide(head, branching="best", top_k=16, max_depth=2, min_confidence=0.0)
    wide: dict[str, Any] = {"cape_thresholds": (), "cape_widths": (18,)}
    return Glide(head, max_depth=2, min_confidence=0.0, prompt_tokens=16, **wide)


def dense_retrieval(
    cell: Cell, requests: Sequence[Request], plain: Sequence[Result], folder: Path
) -> Retrieval:
    """A datastore of what plain decoding said, with the states in which it said that."""
    target, draw = Target(model_of(cell.family, cell.dtype)), random.Random(0)
    prompts: dict[str, Prompt] = {}
    texts: list[list[int]] = []
    for request, result in zip(requests, plain, strict=True):
        spoilt = [t if draw.random() < 0.7 else draw.randrange(3, 90) for t in result.tokens]
        for text in (list(result.tokens), spoilt):
            assert isinstance(request.prompt, Mapping)
            prompts[f"d0-{len(texts)}"] = from_inputs(request.prompt, target.model.config)
            texts.append(text)
    write_store(folder, texts, tokenizer=letters(), vocab_size=target.vocab_size)
    reader = PromptedReader(target, lambda name: prompts[name.id], tap=target.last_tap)
    collect_keys(folder, target, reader)
    return Retrieval([folder], sources=["dense"], min_confidence=0.0, max_depth=6)


def _places(cell: Cell) -> list[tuple[str, int]]:
    """(layout, row) of each request of the cell; a batch mixes layouts and lengths."""
    layouts = LAYOUTS[FAMILIES[cell.family].kind]
    first = layouts.index(cell.layout)
    return [(layouts[(first + row) % len(layouts)], row) for row in range(cell.batch)]


def _requests(cell: Cell) -> list[Request]:
    return [_request(cell.family, cell.sampling, *place, cell.exactness) for place in _places(cell)]


def _request(
    family: str, sampling: str, layout: str, row: int, exactness: str = "standard"
) -> Request:
    inputs = prompt_inputs(
        FAMILIES[family],
        layout,  # type: ignore[arg-type]
        num_text_tokens=PROMPT_TOKENS[row],
        seed=row,
    )
    kept = {"logprobs": 1, "output_logits": True} if exactness == "bitwise" else {}
    return Request(
        inputs, max_new_tokens=NEW_TOKENS - 5 * row, seed=11 + row, **SAMPLINGS[sampling], **kept
    )


@cache
def _plain(
    family: str,
    dtype: str,
    sampling: str,
    layout: str,
    row: int,
    exactness: str = "standard",
    max_nodes: int = 0,
    reuse: str = "none",
) -> Result:
    """Plain decoding of one request alone: what every cell must reproduce."""
    engine = _engine(family, dtype, max_nodes, [], reuse=reuse, exactness=exactness)
    return engine.generate(_request(family, sampling, layout, row, exactness), speculate=False)
