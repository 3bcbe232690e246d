"""Stress: a drafter that knows the plain text and hides it in random trees.

A real drafter may draft little on a short prompt, and then a check proves little. This one makes
trees of every shape in which true tokens stand among wrong ones, so that paths of every length are
accepted and siblings are dropped.
"""

from collections.abc import Sequence
from random import Random

from mmspec.draft_guide import DraftGuide
from mmspec.state import Prefill, Prompt, Scores, Verdict
from mmspec.tree import TokenTree

_TRUE_SHARE = 0.6  # of the nodes that could be true
_WIDEST = 16  # nodes; a wide tree costs time and shows no more


class Stress:
    """`tell` it the plain texts before the requests are decoded."""

    name = "stress"

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._truths: dict[tuple[int, ...], tuple[int, ...]] = {}

    def tell(self, prompt: Prompt, tokens: Sequence[int]) -> None:
        """`tokens`: what plain decoding chose after the prompt."""
        self._truths[tuple(prompt.token_ids.tolist())] = tuple(tokens)

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> "StressSession":
        ids = tuple(prompt.token_ids.tolist())
        return StressSession(len(ids), self._truths.get(ids, ()), self._vocab_size)


class StressSession:
    """Seeded by its place in the text: the same trees each time."""

    def __init__(self, prompt_length: int, truth: Sequence[int], vocab_size: int) -> None:
        self._prompt_length = prompt_length
        self._truth = truth
        self._vocab_size = vocab_size

    def propose(self, tokens: Sequence[int], budget: int) -> TokenTree:
        random = Random(len(tokens))
        ahead = self._truth[len(tokens) - self._prompt_length :]
        drawn, parents, depths, is_true = [tokens[-1]], [-1], [0], [True]
        taken: set[tuple[int, int]] = set()
        for _ in range(random.randint(0, min(budget, _WIDEST))):
            last_true = max(node for node, true in enumerate(is_true) if true)
            parent = random.choice([random.randrange(len(drawn)), last_true, last_true])
            depth = depths[parent]
            known = is_true[parent] and depth < len(ahead)
            token = random.randrange(self._vocab_size)
            if known and random.random() < _TRUE_SHARE:
                token = ahead[depth]
            if (parent, token) in taken:
                continue
            taken.add((parent, token))
            drawn.append(token)
            parents.append(parent)
            depths.append(depth + 1)
            is_true.append(known and token == ahead[depth])
        nodes = len(drawn) - 1
        return TokenTree(
            tokens=tuple(drawn),
            parents=tuple(parents),
            confidence=(1.0, *[0.5] * nodes),
            drafters=("", *[Stress.name] * nodes),
        )

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        pass

    def close(self) -> None:
        pass
