"""Difference: where a text first parts from the plain one, and whether rounding can be why."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from mmspec.beginnings import num_shared
from mmspec.build_sampler import build_sampler
from mmspec.check.witness import Witness
from mmspec.engine import Engine
from mmspec.noise import gumbel
from mmspec.params import merged_generation_config
from mmspec.requests import Request, Result, build_request
from mmspec.state import Prompt

Verdict = Literal["near-tie", "bug"]
_CONTEXT_TOKENS = 12


@dataclass(frozen=True)
class Difference:
    """The first token at which two texts differ. Margins and errors are in perturbed logits: after
    processors and temperature, noise of the seed added."""

    token: int  # index in the generated text
    plain: int | None  # plain decoding's token; None: its text had ended
    other: int | None
    before: str  # the text before it, and each continuation with its token in it
    plain_text: str
    other_text: str
    verdict: Verdict
    why: str  # in plain words
    plain_margin: float | None = None  # best - second, of plain decoding; None: not seen again
    other_margin: float | None = None  # the same of the other way
    error: float | None = None  # largest |logit - plain logit| at that place
    bound: float | None = None  # what rounding explains of that error


def explain(
    engine: Engine,
    request: Request,
    plain: Result,
    other: Result,
    *,
    again: Callable[[Request], Result],
    bound: Callable[[], float],
) -> Difference:
    """Decodes both texts again, with witnesses, and compares what they saw.

    `request` holds a processed Prompt; `again` decodes it the way that gave `other`; `bound` is
    what rounding explains of a raw logit's error.
    """
    prompt = request.prompt
    assert isinstance(prompt, Prompt)
    token = num_shared(plain.tokens, other.tokens)
    texts = _texts(engine, token, plain.tokens, other.tokens)
    chosen = _at(plain.tokens, token), _at(other.tokens, token)
    verdict = partial(Difference, token, *chosen, *texts)
    if other.error is not None:
        return verdict("bug", f"it failed: {other.error}")
    if None in chosen:
        return verdict("bug", "one text ends where the other goes on with the same tokens before")
    witnesses = [Witness(prompt.num_tokens, plain.tokens) for _ in range(2)]
    short = {"max_new_tokens": token + 1}
    engine.generate(
        build_request(request, {**short, "logits_processors": [witnesses[0]]}), speculate=False
    )
    second = again(build_request(request, {"logits_processors": [witnesses[1]]}))
    mine, theirs = (witness.scores for witness in witnesses)
    if mine is None or theirs is None or any(w.position != token for w in witnesses):
        return verdict("bug", "decoded a second time the texts do not part at this token")
    if _at(second.tokens, token) != chosen[1]:
        return verdict("bug", "decoded a second time another token is chosen there")
    perturb, scale = _perturbation(engine, request, witnesses[0], token)
    raw_error = _largest_difference(mine, theirs)
    perturbed = [perturb(witness) for witness in witnesses]
    margins = [_margin(scores) for scores in perturbed]
    # Rounding is judged on what the model said; the warpers' -inf are decided by it.
    error, allowed = raw_error * scale, bound() * scale
    is_border = any(
        not torch.isfinite(scores[token_id]) for scores in perturbed for token_id in chosen
    )
    figures = (*margins, error, allowed)
    if error > allowed:
        return verdict(
            "bug",
            f"the logits differ by {error:.3g} here, and rounding explains {allowed:.3g}: "
            "speculation computes something else",
            *figures,
        )
    if is_border:
        return verdict(
            "near-tie",
            "top-k or top-p cuts between tokens that are as likely as each other within rounding",
            *figures,
        )
    if max(margins) > 2 * allowed:  # each of the two logits may be off by the bound
        return verdict(
            "bug",
            f"the best token leads by {max(margins):.3g}, more than rounding can turn "
            f"(2 x {allowed:.3g})",
            *figures,
        )
    return verdict(
        "near-tie",
        f"the two best tokens are {max(margins):.3g} apart, which is within rounding",
        *figures,
    )


def _at(tokens: Sequence[int], index: int) -> int | None:
    return tokens[index] if index < len(tokens) else None


def _texts(
    engine: Engine, token: int, plain: Sequence[int], other: Sequence[int]
) -> tuple[str, str, str]:
    """The text before the token, and both texts from it on, a few tokens each."""
    tokenizer = engine.tokenizer
    if tokenizer is None:
        return "", "", ""
    spans = (
        plain[max(token - _CONTEXT_TOKENS, 0) : token],
        plain[token : token + _CONTEXT_TOKENS],
        other[token : token + _CONTEXT_TOKENS],
    )
    before, mine, theirs = (tokenizer.decode(list(span)) for span in spans)
    return before, mine, theirs


def _perturbation(
    engine: Engine, request: Request, witness: Witness, token: int
) -> tuple[Callable[[Witness], Tensor], float]:
    """(a witness's scores -> what the sampler compares, (vocab,); how much that magnifies an error:
    1 / temperature)."""
    prompt, model = request.prompt, engine.target.model
    assert isinstance(prompt, Prompt)
    witnessed = build_request(request, {"logits_processors": [witness]})
    config = merged_generation_config(
        model,
        witnessed,
        tokenizer=engine.tokenizer,
        prompt_length=prompt.num_tokens,
        max_new_tokens=token + 1,
    )
    seed = request.seed or 0
    sampler = build_sampler(model, config, witnessed, prompt.token_ids, seed=seed)
    processors = list(sampler.processors)
    warpers = LogitsProcessorList(processors[processors.index(witness) + 1 :])

    def perturb(seen: Witness) -> Tensor:
        assert seen.scores is not None and seen.input_ids is not None
        scores = warpers(seen.input_ids, seen.scores.unsqueeze(0).clone()).squeeze(0)
        if sampler.is_greedy:
            return scores
        return scores + gumbel(seed, token, scores.shape[0], device=scores.device)

    return perturb, 1.0 if sampler.is_greedy else 1.0 / (config.temperature or 1.0)


def _margin(scores: Tensor) -> float:
    best, second = scores.topk(2).values.tolist()
    return best - second


def _largest_difference(first: Tensor, second: Tensor) -> float:
    differences = (first - second).abs()
    return float(differences[differences.isfinite()].max())
