"""A drafter that does its worst: random trees in which the truth hides among look-alikes."""

import random
from collections.abc import Mapping, Sequence

from mmspec.draft_guide import DraftGuide
from mmspec.state import Prefill, Prompt, Scores, Verdict
from mmspec.tree import TokenTree


class Adversary:
    """Knows each prompt's plain continuation and hides it in random trees.

    A tree grows at random places. A node below a true path gets the next true token half of the
    time, so that paths of every length and at every place in the tree are accepted; all other
    tokens are drawn at random, near repetitions of the truth among them. Confidences are noise.
    """

    name = "adversary"

    def __init__(self, truths: Mapping[tuple[int, ...], Sequence[int]], vocab_size: int) -> None:
        """`truths`: prompt tokens -> the tokens that plain decoding chose after them."""
        self._truths = truths
        self._vocab_size = vocab_size

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "AdversarySession":
        ids = tuple(prompt.token_ids.tolist())
        return AdversarySession(ids, self._truths.get(ids, ()), self._vocab_size)


class AdversarySession:
    def __init__(self, prompt: tuple[int, ...], truth: Sequence[int], vocab_size: int) -> None:
        self._prompt_length = len(prompt)
        self._truth = truth
        self._vocab_size = vocab_size
        self._random = random.Random(sum(prompt))

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        draw = self._random
        ahead = list(self._truth[len(tokens) - self._prompt_length :])
        nodes: list[tuple[int, int, bool]] = [(tokens[-1], -1, True)]  # token, parent, is true
        depths, taken = [0], {(-1, tokens[-1])}
        for _ in range(draw.randint(0, budget)):
            true_nodes = [n for n, node in enumerate(nodes) if node[2]]
            parent = draw.choice([draw.randrange(len(nodes)), true_nodes[-1]])
            depth = depths[parent]
            is_true = nodes[parent][2] and depth < len(ahead) and draw.random() < 0.6
            wrong = draw.choice([draw.randrange(self._vocab_size), draw.choice(ahead or [0])])
            token = ahead[depth] if is_true else wrong
            if (parent, token) in taken:
                continue
            is_true = nodes[parent][2] and depth < len(ahead) and token == ahead[depth]
            taken.add((parent, token))
            nodes.append((token, parent, is_true))
            depths.append(depth + 1)
        return TokenTree(
            tokens=tuple(token for token, _, _ in nodes),
            parents=tuple(parent for _, parent, _ in nodes),
            confidence=(1.0, *(draw.random() for _ in nodes[1:])),
            drafters=("", *[Adversary.name] * (len(nodes) - 1)),
        )

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        pass

    def close(self) -> None:
        pass
