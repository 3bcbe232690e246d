"""A drafter that draws its tokens from a distribution of its own, as chains or trees, with q."""

from collections.abc import Callable, Sequence

import torch
from outcomes import Drawn
from torch import Tensor

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.draw import draw_level
from mmspec.noise import DRAFT_STREAM, Place
from mmspec.state import Prefill, Prompt, Scores, Verdict
from mmspec.tree import TokenTree


def draw_children(
    logits: Tensor, k: int, *, seed: int, sample: int, position: int, draw: int
) -> Drawn:
    """The library's own draw, of one node: fewer than `k` where q has fewer."""
    place = Place(seed, sample, position, DRAFT_STREAM + draw)
    drawn = draw_level(logits.unsqueeze(0), k, [place])
    tokens = drawn.tokens[0][drawn.rates[0] > 0.0]
    return Drawn(tokens.tolist(), drawn.q[0])


class SamplingDrafter:
    """`say` gives the drafter's raw logits (vocab,) after a text; `widths[d]` children are drawn
    below every node of depth d, fewer levels where the budget is smaller."""

    name = "sampling"
    draws = True

    def __init__(self, say: Callable[[Sequence[int]], Tensor], widths: Sequence[int]) -> None:
        self.say = say
        self.widths = tuple(widths)

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "SamplingSession":
        return SamplingSession(self, guide)


class SamplingSession:
    def __init__(self, drafter: SamplingDrafter, guide: DraftGuide) -> None:
        self._drafter = drafter
        self._guide = guide

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        drawn, parents, paths = [tokens[-1]], [-1], [tuple(tokens)]
        confidence, q, level = [1.0], list[Tensor](), [0]
        place = len(tokens) - self._guide.prompt_length
        for width in self._drafter.widths:
            if len(drawn) - 1 + len(level) * width > budget:
                break  # settled by the shape alone
            below = list[int]()
            for node in level:
                logits = self._guide.warp(self._drafter.say(paths[node]).unsqueeze(0))[0]
                children = draw_children(
                    logits,
                    width,
                    seed=self._guide.seed,
                    sample=self._guide.sample,
                    position=place,
                    draw=node,
                )
                q.append(children.q)
                for token in children.tokens:
                    below.append(len(drawn))
                    drawn.append(token)
                    parents.append(node)
                    paths.append((*paths[node], token))
                    confidence.append(float(children.q[token].clamp(0.0, 1.0)))
            level = below
        if len(drawn) == 1:
            return TokenTree.root(tokens[-1])
        q += [torch.zeros_like(q[0])] * (len(drawn) - len(q))  # nothing was drawn below the leaves
        return TokenTree(
            tuple(drawn),
            tuple(parents),
            tuple(confidence),
            ("", *[SamplingDrafter.name] * (len(drawn) - 1)),
            torch.stack(q),
        )

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        pass

    def close(self) -> None:
        pass
