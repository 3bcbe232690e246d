"""What is right, and what differs from it."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmspec.engine import Engine
from mmspec.kv import KVCache
from mmspec.logprobs import TokenLogprobs
from mmspec.noise import gumbel
from mmspec.requests import Result

from .cases import Case


def rounding_of(plain: Engine, dtype: str = "float64") -> float:
    """By how much log-probabilities of a model in `dtype` may differ. Norms are float32 in any, and
    so are running states, which a whole prompt and its tokens one by one come to in other ways."""
    return {"float64": 1e-5, "float32": 1e-3}["float32" if plain.target.state_kinds else dtype]


def alone(plain: Engine, case: Case, sample: int, seed: int | None = None) -> Result:
    """Plain decoding of one sample by itself; a failure is in the Result."""
    request = case.request(plain=True)
    options = {"sample": sample, **({} if seed is None else {"seed": seed})}
    ((_, result),) = plain.generate_each([request], **options)
    return result


def differences(
    expected: Result,
    got: Result,
    *,
    may_close: bool,
    exact: float,
    logprobs_of: str = "raw",
    may_stop: bool = False,
) -> Iterator[str]:
    """`exact`: by how much log-probabilities may differ. `may_stop`: when its time is up."""
    if expected.seed is None:  # it never began
        if got.error is None or str(got.error) != str(expected.error):
            yield f"expected the error {expected.error!r}, got {got.error!r}"
        return
    tokens = expected.tokens
    is_cut = may_close and got.finish_reason == "closed"
    is_cut |= may_stop and got.finish_reason == "stop"
    if is_cut:
        tokens = tokens[: len(got.tokens)]
    if got.tokens != tokens:
        pairs = enumerate(zip(tokens, got.tokens, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(tokens), len(got.tokens)))
        yield f"first mismatch at token {first}: plain {tokens}, got {got.tokens} ({got.error!r})"
        return
    if not is_cut:
        if got.finish_reason != expected.finish_reason:
            yield f"ended by {got.finish_reason}, plain by {expected.finish_reason} ({got.error!r})"
        if got.text != expected.text:
            yield f"text {got.text!r}, plain {expected.text!r}"
    elif not expected.text.startswith(got.text.rstrip("\ufffd")[: len(expected.text)]):  # behind
        # it may come what could have become a stop string, and within it half a character
        yield f"closed text {got.text!r}, plain {expected.text!r}"
    if not is_cut and type(got.error) is not type(expected.error):
        yield f"error {got.error!r}, plain {expected.error!r}"
    if "".join(map(str, got.pieces)) != got.text:
        yield f"pieces {got.pieces} of the text {got.text!r}"
    if (got.seed, got.sample) != (expected.seed, expected.sample):
        yield f"seed, sample {got.seed, got.sample}, plain {expected.seed, expected.sample}"
    count = len(got.tokens)
    rounded = exact if logprobs_of == "raw" else max(exact, 1e-4)  # processed ones are float32
    yield from _logprobs("logprobs", expected.logprobs, got.logprobs, rounded, count=count)
    read = len(got.prompt_logprobs or ()) if is_cut else None  # it may end within its prompt
    kept = expected.prompt_logprobs, got.prompt_logprobs
    yield from _logprobs("prompt", *kept, exact, count=read)
    for name in ("scores", "logits"):
        yield from _tensors(name, getattr(expected, name), getattr(got, name), count, exact)
    yield from _stats(got)


_SPOKEN = {"repetition_penalty", "min_new_tokens", "max_new_tokens", "eos_token_id"}
_SILENT = {"seed", "sample", "n", "temperature", "generation_config", "ignore_eos"}
_SILENT |= {"do_sample", "top_k", "top_p", "min_p"}  # where it is greedy
_KEPT = {"logprobs", "logprobs_of", "prompt_logprobs", "output_scores", "output_logits"}


def by_transformers(plain: Engine, case: Case, expected: Result) -> Iterator[str]:
    """Where a case is greedy and asks for what transformers has too: what that says."""
    options = case.options
    is_common = options.keys() <= _SPOKEN | _SILENT | _KEPT and not case.made
    is_sampled = case.request(plain=True).asks_for_sampling is not False
    if is_sampled or not is_common or expected.error is not None:
        return
    model = plain.target.model
    spoken = {name: value for name, value in options.items() if name in _SPOKEN}
    config = copy.deepcopy(options.get("generation_config", model.generation_config))
    if options.get("ignore_eos"):
        config.eos_token_id = None
    own, config.cache_implementation = model.generation_config, None
    inputs = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in case.prompt.items()
    }
    try:
        model.generation_config = copy.deepcopy(config)  # which fills in what is None
        said = model.generate(
            **inputs, generation_config=config, tokenizer=plain.tokenizer, do_sample=False, **spoken
        )
    finally:
        model.generation_config = own
    tokens = tuple(said[0, case.prompt["input_ids"].shape[1] :].tolist())
    if tokens != expected.tokens:
        yield f"transformers says {tokens}, plain decoding {expected.tokens}"


def is_tie(plain: Engine, case: Case, expected: Result, got: Result) -> bool:
    """Whether rounding alone may have chosen the other token, where the texts first part."""
    ((said),) = [r for r in got.samples if r.sample == expected.sample] or [got]
    pairs = enumerate(zip(expected.tokens, said.tokens, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), None)
    if first is None or expected.seed is None:
        return False
    kept = replace(case, options={**case.options, "output_scores": True})
    scores = alone(plain, kept, expected.sample).scores
    assert scores is not None
    values = scores[first]
    if not case.request(plain=True).asks_for_sampling:
        noisy = values
    else:
        noise = gumbel(expected.seed, first, len(values), sample=expected.sample)
        noisy = values + noise
    gap = float(noisy[expected.tokens[first]] - noisy[said.tokens[first]])
    return gap < 1e-3 or gap == torch.inf  # at the border of what a warper leaves


def _logprobs(
    name: str,
    expected: Sequence[TokenLogprobs | None] | None,
    got: Sequence[TokenLogprobs | None] | None,
    exact: float,
    *,
    count: int | None = None,
) -> Iterator[str]:
    if expected is None or got is None:
        if (expected is None) != (got is None):
            yield f"{name}: {got} for {expected}"
        return
    wanted = list(expected)[:count]
    if len(wanted) != len(got):
        yield f"{name}: {len(got)} places, plain {len(wanted)}"
        return
    for place, (a, b) in enumerate(zip(wanted, got, strict=True)):
        if a is None or b is None:
            if a is not b:
                yield f"{name} at {place}: {b} for {a}"
            continue
        if a.chosen.token != b.chosen.token or a.chosen.text != b.chosen.text:
            yield f"{name} at {place}: {b.chosen} for {a.chosen}"
        values = [(x.logprob, y.logprob) for x, y in zip(a.top, b.top, strict=False)]
        values.append((a.chosen.logprob, b.chosen.logprob))
        off = max(abs(x - y) if x != y else 0.0 for x, y in values)
        if len(a.top) != len(b.top) or not off <= exact:
            yield f"{name} at {place}: off by {off}, {len(b.top)} likeliest for {len(a.top)}"
            return


def _tensors(
    name: str, expected: Tensor | None, got: Tensor | None, count: int, exact: float
) -> Iterator[str]:
    if expected is None or got is None:
        if (expected is None) != (got is None):
            yield f"{name}: kept by one alone"
        return
    if expected.shape[0] < count or got.shape[0] != count:
        yield f"{name}: {got.shape[0]} kept for {count} tokens, plain {expected.shape[0]}"
        return
    if count and not torch.allclose(expected[:count], got, rtol=1e-4, atol=max(exact, 1e-4)):
        yield f"{name}: off by {(expected[:count] - got).abs().nan_to_num(0).max()}"


def _stats(got: Result) -> Iterator[str]:
    stats = got.stats
    lengths = stats.accepted_lengths
    if stats.new_tokens != len(got.tokens):
        yield f"stats: {stats.new_tokens} new tokens of {len(got.tokens)}"
    if got.error is None and got.tokens:
        told = 1 + sum((length + 1) * steps for length, steps in lengths.items())
        if told != len(got.tokens):
            yield f"stats: accepted lengths {lengths} say {told} tokens of {len(got.tokens)}"
    if stats.steps != sum(lengths.values()):
        yield f"stats: {stats.steps} steps, accepted lengths {lengths}"
    accepted = sum(length * steps for length, steps in lengths.items())
    by_drafter = sum(one.accepted for one in stats.by_drafter.values())
    if accepted != by_drafter:
        yield f"stats: {accepted} accepted, by drafter {by_drafter}"
    if any(one.accepted > one.proposed for one in stats.by_drafter.values()):
        yield f"stats: more accepted than proposed: {stats.by_drafter}"
    if not 0 <= stats.reused_tokens < max(stats.prompt_tokens, 1):
        yield f"stats: {stats.reused_tokens} reused of {stats.prompt_tokens}"


@contextmanager
def watched(engines: Sequence[Engine]) -> Iterator[list[KVCache]]:
    """The caches that the engines' targets make within it."""
    made: list[KVCache] = []
    targets = list({id(engine._decoded): engine._decoded for engine in engines}.values())

    def noted(new_cache: Callable[..., KVCache]) -> Callable[..., KVCache]:
        def noting(*args: Any, **kwargs: Any) -> KVCache:
            made.append(new_cache(*args, **kwargs))
            return made[-1]

        return noting

    for target in targets:
        target.new_cache = noted(target.new_cache)  # type: ignore[method-assign]
    try:
        yield made
    finally:
        for target in targets:
            del target.new_cache


def leaks(engine: Engine, caches: Sequence[KVCache]) -> Iterator[str]:
    """What a run has left behind. `caches`: those that the target made meanwhile."""
    store = engine._prefill.prefixes
    if store is not None:
        store.check_integrity()
        nodes = [node for root in store._roots.values() for node in (root, *root.below())]
        users = sum(node.num_users for node in nodes)
        if users:
            yield f"the prefix store has {users} users left"
    for cache in caches:
        cache.check_integrity()
        if cache.rows:
            yield f"the target's cache has rows {cache.rows} left"
    for drafter in engine.drafters:
        yield from left_by(drafter)


def left_by(drafter: Any) -> Iterator[str]:
    cache = getattr(drafter, "cache", None)
    if isinstance(cache, KVCache):
        cache.check_integrity()
        if cache.rows:
            yield f"{drafter.name}'s cache has rows {cache.rows} left"
    if getattr(drafter, "_views", None):
        yield f"{drafter.name} has {len(drafter._views)} views left"
    for part in ("middle", "lower"):
        below = getattr(drafter, part, None)
        if below is not None and hasattr(below, "name"):
            yield from left_by(below)
