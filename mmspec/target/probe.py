"""The probe: does the model score a token tree as it would decode each path by itself?

"Any transformers model" is a measured promise: at load a five-node branching tree is scored and
compared with the model's own decoding of each path, with its own cache, masks and positions.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from mmspec.errors import MmspecError, ModelError
from mmspec.kernels import raise_if_lost, shown
from mmspec.kv import KVCache
from mmspec.state import Prompt
from mmspec.target.attached import Attention
from mmspec.target.blocks import Blocks
from mmspec.target.cross import beside_text, probe_inputs
from mmspec.target.families import first_position, index_layers, mask_rules
from mmspec.target.linears import Linears
from mmspec.target.stateful import cache_keyword, state_kinds
from mmspec.target.target import Target, input_device
from mmspec.tree import TokenTree

logger = logging.getLogger(__name__)
Shape = Literal["tree", "chain", "plain"]

#      0        A wrong mask lets 2 see 1, or 4 see 3; a wrong position counts nodes
#     / \       instead of depths; both move the logits by about their own spread.
#    1   2
#    |\
#    3 4
_PARENTS = (-1, 0, 0, 1, 1)
_SHAPES: dict[Shape, Callable[[TokenTree], TokenTree]] = {  # widest first
    "tree": lambda tree: tree,
    "chain": TokenTree.best_chain,
    "plain": lambda tree: TokenTree.root(tree.tokens[0]),
}
_PREFIX_TOKENS = 24
_OFF = "off by {:.2g} standard deviations of the logits"


@dataclass(frozen=True)
class ProbeReport:
    """What the model can score, and how far that is from its own decoding."""

    shape: Shape  # the widest that agrees: any tree, one path, or node 0 alone
    error: float  # largest logit difference of that shape, in the logits' standard deviations
    tolerance: float
    attention: Attention = "model"  # "tree": mmspec's own was tried and agrees
    attention_failure: str = ""  # why it does not, where it was tried


def probe(
    model: PreTrainedModel,
    *,
    attention: Attention = "tree",
    backend: str = "auto",
    linears: Linears | None = None,
    blocks: Blocks | None = None,
) -> tuple[Target, ProbeReport]:
    """The model as a Target with the mask rule that fits, and what it was seen to score.

    With `attention="tree"` mmspec's own attention, by its `backend`, is compared too, in the
    `blocks`, and taken if it agrees. `linears` go to the target as they are. Raises ModelError if
    not even one token at a time agrees with the model's own decoding.
    """
    trial = _Trial.of(model)
    target, report = _widest(model, trial)
    if chosen := index_layers(model.config):  # which tokens is not ours to know
        why = f"layers {list(chosen)} choose which tokens they see"
        report = replace(report, attention_failure=why if attention == "tree" else "")
    elif attention == "tree":
        report, blocks = _with_tree_attention(target, report, trial, backend, blocks)
    made = Target(
        model,
        mask_rule=target.mask_rule,
        attention=report.attention,
        backend=backend,
        linears=linears,
        blocks=blocks,
        found=target.found,
    )
    if report.shape != "plain" and made.cuts.whole_because is None:
        against = _reason_against_cuts(target, trial.prompts[0])
        made.cuts = replace(made.cuts, whole_because=against)
    return made, report


@dataclass(frozen=True)
class _Trial:
    """A tree below some prompts, and what the model by itself says of it."""

    prompts: Sequence[Prompt]
    tree: TokenTree
    expected: Sequence[Mapping[tuple[int, ...], Tensor]]  # of each prompt: logits by path

    @staticmethod
    def of(model: PreTrainedModel) -> "_Trial":
        """Raises ModelError where the model does not decode by itself."""
        prompt, tree = _probe_prompt(model)
        prompt = replace(prompt, model_inputs=probe_inputs(model, prompt.num_tokens))
        # A second, shorter row, of text alone: ragged batches must hold too.
        prompts = (prompt, Prompt(prompt.token_ids[: prompt.num_tokens // 2]))
        try:
            expected = [_native_logits(model, row, tree) for row in prompts]
        except Exception as e:
            raise ModelError(
                f"{type(model).__name__} does not decode a text by itself, a token at a time over "
                f"a cache of keys and values ({_reason(e, model.device)}). Use transformers' "
                "generate."
            ) from e
        return _Trial(prompts, tree, expected)


def _widest(model: PreTrainedModel, trial: _Trial) -> tuple[Target, ProbeReport]:
    """The first mask rule by which the model scores a tree, or else a chain, or node 0 alone.
    Raises ModelError where by none not even that agrees."""
    tolerance = _tolerance(model.dtype)
    found: list[tuple[Target, ProbeReport]] = []
    failures: list[str] = []
    for rule in mask_rules(model.config):
        try:
            target = Target(model, mask_rule=rule)
        except Exception as e:  # while its mixers are looked for
            raise ModelError(
                f"{type(model).__name__} cannot be decoded: it fails over mmspec's cache "
                f"({_reason(e, model.device)}). Use transformers' generate for it."
            ) from e
        for shape in _SHAPES:
            try:
                error = _distance(target, trial, shape)
            except Exception as e:
                failures.append(f"{shape}: {_reason(e, model.device)}")
                continue
            if error <= tolerance:
                found.append((target, ProbeReport(shape, error, tolerance)))
                break
            failures.append(f"{shape}: {_OFF.format(error)}")
        if found and found[-1][1].shape == "tree":
            return found[-1]
    if not found:
        drops = "; in training mode dropout draws anew: call model.eval()" if model.training else ""
        raise ModelError(
            f"{type(model).__name__} cannot be decoded: scored through mmspec's cache, masks and "
            f"positions its logits differ from its own decoding ({'; '.join(failures)}){drops}"
        )
    return max(found, key=lambda item: item[1].shape == "chain")


def _reason(error: Exception, device: torch.device) -> str:
    """What went wrong, whatever a model or a compiler of kernels may raise. Raised again are
    mmspec's own errors, and what says that the device is lost or its memory used up."""
    if isinstance(error, MmspecError):
        raise error
    raise_if_lost(error, device)
    return shown(error)


def _with_tree_attention(
    target: Target, report: ProbeReport, trial: _Trial, backend: str, blocks: Blocks | None
) -> tuple[ProbeReport, Blocks | None]:
    """The report of mmspec's own attention, or `report` and why not; with as much of the blocks as
    does not fail."""
    failed = ""
    while True:
        own = Target(
            target.model,
            mask_rule=target.mask_rule,
            attention="tree",
            backend=backend,
            blocks=blocks,
            found=target.found,
        )
        tried = _tried(own, report, trial)
        if tried.attention == "tree" and failed:
            logger.warning(
                "%s decodes otherwise through mmspec's kernels of its blocks (%s); %s, which is "
                "slower",
                type(target.model).__name__,
                failed,
                "its own blocks are used" if blocks is None else "fewer of them are used",
            )
        if tried.attention == "tree" or blocks is None:
            return tried, blocks
        failed = failed or tried.attention_failure
        blocks = blocks if blocks.simplify() else None


def _tried(own: Target, report: ProbeReport, trial: _Trial) -> ProbeReport:
    """The report of mmspec's own attention, or `report` and why not."""
    try:
        error = _distance(own, trial, report.shape)
        if own.attachments.blocks is not None and own.device.type == "cuda":
            alone = replace(trial, prompts=trial.prompts[:1], expected=trial.expected[:1])
            error = max(error, _distance(own, alone, "plain"))  # one row goes by other kernels
    except Exception as e:
        return replace(report, attention_failure=_reason(e, own.device))
    if error > report.tolerance:
        return replace(report, attention_failure=_OFF.format(error))
    return replace(report, attention="tree", error=error)


def _probe_prompt(model: PreTrainedModel) -> tuple[Prompt, TokenTree]:
    """Ordinary tokens from the middle of the vocabulary: specials lie at its ends."""
    vocab_size = model.config.get_text_config(decoder=True).vocab_size
    generator = torch.Generator().manual_seed(0)
    low, high = vocab_size // 4, max(vocab_size * 3 // 4, vocab_size // 4 + 8)
    drawn = torch.randperm(high - low, generator=generator)[: len(_PARENTS)] + low
    prefix = torch.randint(low, high, (_PREFIX_TOKENS,), generator=generator)
    tree = TokenTree(
        tokens=tuple(drawn.tolist()),
        parents=_PARENTS,
        confidence=(1.0, 0.9, 0.5, 0.9, 0.5),
        drafters=("", *["probe"] * (len(_PARENTS) - 1)),
    )
    return Prompt(prefix), tree


def _native_logits(
    model: PreTrainedModel, prompt: Prompt, tree: TokenTree
) -> dict[tuple[int, ...], Tensor]:
    """Logits (vocab,) after each path's tokens, decoded by the model alone, a token at a time."""
    expected: dict[tuple[int, ...], Tensor] = {}
    has_states, keyword = bool(state_kinds(model.config)), cache_keyword(model)
    embedding = model.get_input_embeddings()
    device = input_device(embedding, embedding.weight)
    with torch.no_grad(), _left_as_found(model):
        ids = prompt.token_ids.unsqueeze(0).to(device)
        given = {n: t.to(device) for n, t in prompt.model_inputs.items()}
        cache = DynamicCache(config=model.config)
        model(input_ids=ids, use_cache=True, **{keyword: cache}, **given)
        behind = {-1: (cache, given)}  # each node; -1: the prompt
        for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
            path = tuple(tree.tokens[n] for n in tree.path_to(node))
            cache, given = deepcopy(behind[parent][0]), beside_text(behind[parent][1])
            behind[node] = (cache, given)
            ids = torch.tensor([[token]], device=device)
            # As generate tells them: some hybrids count each call's tokens from 0.
            place = first_position(model.config) + prompt.num_tokens + len(path) - 1
            told = {"position_ids": torch.full_like(ids, place)} if has_states else {}
            output = model(input_ids=ids, use_cache=True, **{keyword: cache}, **told, **given)
            expected[path] = output.logits[0, -1]
    return expected


def _distance(target: Target, trial: _Trial, shape: Shape) -> float:
    """The largest difference over all rows and the nodes of the tree's part of this shape, in
    standard deviations of the logits."""
    cache, tree = target.new_cache(), _SHAPES[shape](trial.tree)
    placements = []
    for prompt in trial.prompts:
        row = cache.open(prompt.num_tokens + tree.num_nodes)
        placements.append(target.prefill(prompt, cache, row).placement)
    # Of different sizes too, the longest text with the least: a mask of the model's own that
    # counts columns is wrong there alone.
    smaller = [TokenTree.root(tree.tokens[0]), *[tree] * (len(trial.prompts) - 1)]
    differences = []
    for trees in ([tree] * len(trial.prompts), smaller):
        scores = target.score(trees, cache, placements)
        for scored, score, own in zip(trees, scores, trial.expected, strict=True):
            for node in range(scored.num_nodes):
                logits = own[tuple(tree.tokens[n] for n in tree.path_to(node))]
                there = logits.to(target.logits_device)
                differences.append(_apart(score.logits[node], there, target.dtype))
    return max(differences) if all(d == d for d in differences) else float("inf")


def _tolerance(dtype: torch.dtype) -> float:
    """Of the logits' standard deviation."""
    return {torch.float64: 1e-5, torch.float32: 1e-2}.get(dtype, 0.25)


def _apart(found: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """The largest difference in standard deviations of the expected logits, (vocab,) both."""
    spread = expected.double().std().clamp_min(torch.finfo(dtype).tiny)
    return float((found.double() - expected.double()).abs().max() / spread)


def _reason_against_cuts(target: Target, prompt: Prompt) -> str | None:
    """Why the model's prompts cannot be read in pieces, or None: a model whose tokens see later
    ones has other keys then, and some models read a second piece otherwise."""
    cache, border = target.new_cache(), prompt.num_tokens // 2
    rows = [cache.open(prompt.num_tokens) for _ in range(2)]
    whole = target.prefill(prompt, cache, rows[0])
    try:
        target.prefill(prompt, cache, rows[1], stop=border)
        pieces = target.prefill(prompt, cache, rows[1], start=border)
    except Exception as e:
        return f"the second piece of a prompt fails ({_reason(e, target.device)})"
    error = _apart(pieces.logits, whole.logits, target.dtype)
    if error <= _tolerance(target.dtype):
        return None
    return f"a prompt read in two pieces is {_OFF.format(error)}"


def reason_against_watching(target: Target) -> str | None:
    """Why no forward of the target can tell queries that say what of its cache they ask for, or
    None: a model with code of its own for each kind of attention takes another one, whose masks
    are others, where it is attached to; one with latent attention keeps no keys."""
    if target.attachments.attention == "tree":  # attached to, it was seen to agree
        return None
    found = target.found
    if found.against_watching is None:
        found.against_watching = _find_against_watching(target)
    return found.against_watching or None


def _find_against_watching(target: Target) -> str:
    """As `reason_against_watching`; nothing where there is none."""
    prompt, tree = _probe_prompt(target.model)
    inputs = probe_inputs(target.model, prompt.num_tokens)
    found: list[Tensor] = []
    try:
        for watched_queries in (0, 1):
            cache = target.new_cache(watched_queries=watched_queries)
            row = cache.open(prompt.num_tokens + 1)
            prefill = target.prefill(replace(prompt, model_inputs=inputs), cache, row)
            root = TokenTree.root(tree.tokens[0])
            (scores,) = target.score([root], cache, [prefill.placement])
            found.append(torch.stack([prefill.logits, scores.logits[0]]))
            if not _fit_keys(cache, row):
                return "it keeps no keys as its queries ask for (latents in place of them)"
            cache.release()
    except Exception as e:
        return f"with its queries asked for, its forward fails ({_reason(e, target.device)})"
    error = max(_apart(told, own, target.dtype) for own, told in zip(*found, strict=True))
    if error <= _tolerance(target.dtype):
        return ""
    return f"with its queries asked for, it is {_OFF.format(error)}"


def _fit_keys(cache: KVCache, row: int) -> bool:
    """Whether the row's queries can be multiplied with what is kept as keys."""
    log, layers = cache.queries, cache.flat_layers
    told = [None if log is None else log.read(row, index) for index in range(len(layers))]
    return all(
        queries is None or queries.states.shape[-1] == layer.keys.shape[-1]
        for queries, layer in zip(told, layers, strict=True)
    )


@contextmanager
def _left_as_found(model: PreTrainedModel) -> Iterator[None]:
    """Native forwards without positions read and keep a rope delta on some models: none is there
    within, the one that was there is there again after."""
    kept = [(m, m.rope_deltas) for m in model.modules() if hasattr(m, "rope_deltas")]
    try:
        for module, _ in kept:
            module.rope_deltas = None
        yield
    finally:
        for module, deltas in kept:
            module.rope_deltas = deltas
