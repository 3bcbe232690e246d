"""How often a small model, as a drafter, says what the target says next."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from mmspec.training.tiny.batch import pixel_tensor, prompt_ids
from mmspec.training.tiny.build import NUM_SPECIALS
from mmspec.training.tiny.data import Sample
from mmspec.training.tiny.evaluate import SUITE, generate, held_out

DEPTH = 4  # drafted tokens a step, for `tokens_a_step`


@dataclass(frozen=True)
class Acceptance:
    """One task's figures, over the tokens of the target's own greedy answers."""

    tokens: int
    top_1: float  # share of tokens that are the drafter's most likely one
    top_4: float  # share of tokens that are among the drafter's four most likely ones
    overlap: float  # mean of sum(min(p, q)): what speculative sampling accepts at temperature 1
    tokens_a_step: float  # tokens a call of the target, greedy, with a chain of DEPTH drafts


def accept(
    target: LlavaForConditionalGeneration,
    drafter: LlavaForConditionalGeneration,
    *,
    num_samples: int,
    tasks: Sequence[str] = tuple(SUITE),
    seed: int = 2,
) -> Iterator[tuple[str, Acceptance]]:
    """Yields (task, acceptance), both models forced along the target's greedy answers.

    Greedily that is exact: a chain of drafts is accepted as far as the drafter's most likely
    tokens, given the target's text, are the target's.
    """
    for task in tasks:
        samples = held_out(task, num_samples=num_samples, seed=seed)
        pairs = [_forced(target, drafter, sample) for sample in samples]
        yield task, compare(pairs)


@torch.no_grad()
def _forced(
    target: LlavaForConditionalGeneration, drafter: LlavaForConditionalGeneration, sample: Sample
) -> tuple[Tensor, Tensor]:
    """Logits of target and drafter, each (answer tokens, vocab), over the target's answer."""
    prompt = prompt_ids(sample)
    (answer,) = generate(target, [sample], len(sample.answer) + 40)
    token_ids = torch.tensor(
        [[*prompt, *(NUM_SPECIALS + byte for byte in answer.encode("latin-1"))]]
    )
    inputs = {"input_ids": token_ids.to(target.device)}
    if sample.pixels is not None:
        inputs["pixel_values"] = pixel_tensor([sample]).to(target.device)
    first = len(prompt) - 1
    return target(**inputs).logits[0, first:], drafter(**inputs).logits[0, first:]


def compare(pairs: Sequence[tuple[Tensor, Tensor]]) -> Acceptance:
    """Figures over several answers' (target logits, drafter logits), each (tokens, vocab)."""
    tokens = calls = 0
    top_1 = top_4 = overlap = 0.0
    for target, drafter in pairs:
        truth = target.argmax(-1)
        hits = drafter.argmax(-1) == truth
        tokens += len(truth)
        calls += _num_calls(hits.tolist())
        top_1 += hits.sum().item()
        top_4 += (drafter.topk(4).indices == truth[:, None]).sum().item()
        overlap += torch.minimum(target.softmax(-1), drafter.softmax(-1)).sum().item()
    return Acceptance(tokens, top_1 / tokens, top_4 / tokens, overlap / tokens, tokens / calls)


def _num_calls(hits: Sequence[bool]) -> int:
    """Target calls for one answer: each yields the accepted drafts and one token of its own."""
    calls = at = 0
    while at < len(hits):
        accepted = 0
        while accepted < DEPTH and at + accepted < len(hits) and hits[at + accepted]:
            accepted += 1
        at += accepted + 1
        calls += 1
    return calls
