"""Exactness by enumeration on small vocabularies: every random outcome, summed.

A table gives the target's distribution after every prefix. All of the target's choices are
enumerated with their probabilities; the loop (propose -> verify -> next node 0) runs on trees that
may know those choices; the distribution of the emitted texts must be the table's own.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from torch import Tensor

from mmspec.noise import gumbel
from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify import VERIFIERS, Chooser, Verifier, coupled

VOCAB, LENGTH = 3, 4
Text = tuple[int, ...]
Proposer = Callable[[Text, Text], TokenTree]  # (chosen so far, what will be chosen) -> tree


def target_probability(prefix: Text) -> tuple[float, ...]:
    """The target's distribution after a prefix: fixed, and different everywhere."""
    draw = random.Random(hash(prefix) % 2**32)
    weights = [draw.random() ** 3 + 0.01 for _ in range(VOCAB)]
    return tuple(weight / sum(weights) for weight in weights)


class Enumerated:
    """A Chooser whose choices were enumerated: the next one, whatever the logits' row says.

    It checks that the verifier shows it the logits of the right node: they name their prefix.
    """

    def __init__(self, choices: Text) -> None:
        self.choices = choices
        self.chosen: list[int] = []

    is_greedy = False

    @property
    def is_done(self) -> bool:
        return len(self.chosen) == LENGTH

    def choose(self, logits: Tensor) -> int:
        expected = logits_after(tuple(self.chosen))
        assert torch.equal(logits, expected), f"logits of another prefix than {self.chosen}"
        token = self.choices[len(self.chosen)]
        self.chosen.append(token)
        return token


def logits_after(prefix: Text) -> Tensor:
    return torch.tensor(target_probability(prefix), dtype=torch.float64).log()


def scored(tree: TokenTree, chosen: Text) -> Tensor:
    """(nodes, vocab): what a target says after each node; node 0 is the last of `chosen`."""
    paths = [
        tuple(tree.tokens[n] for n in tree.path_to(node)[1:]) for node in range(tree.num_nodes)
    ]
    return torch.stack([logits_after((*chosen, *path)) for path in paths])


def emitted(rule: Verifier, choices: Text, propose: Proposer) -> Text:
    """The text that the loop emits when the target's choices are these."""
    row = Enumerated(choices)
    row.choose(logits_after(()))  # the prefill chooses the first token
    text = (row.chosen[0],)
    while not row.is_done:
        tree = propose(text, choices[len(text) :])
        verdict = rule(tree, scored(tree, text), row)
        assert len(verdict.path) == len(verdict.tokens), "one choice for each node of the path"
        text += verdict.tokens
    return text


def distribution(rule: Verifier, propose: Proposer) -> dict[Text, float]:
    """The emitted texts' distribution: a sum over all of the target's choices."""
    total: dict[Text, float] = defaultdict(float)
    for choices in product(range(VOCAB), repeat=LENGTH):
        probability = prod(target_probability(choices[:i])[c] for i, c in enumerate(choices))
        total[emitted(rule, choices, propose)] += probability
    return dict(total)


def largest_error(rule: Verifier, propose: Proposer) -> float:
    """Largest difference from the target's own distribution over all texts."""
    found = distribution(rule, propose)
    texts = product(range(VOCAB), repeat=LENGTH)
    own = {
        text: prod(target_probability(text[:i])[c] for i, c in enumerate(text)) for text in texts
    }
    return max(abs(found.get(text, 0.0) - own.get(text, 0.0)) for text in own.keys() | found.keys())


def random_tree(draw: random.Random, token: int, ahead: Text) -> TokenTree:
    """Up to six nodes; `ahead` lets it hold what will be chosen, as a coupled drafter may."""
    tokens, parents = [token], [-1]
    for _ in range(draw.randint(0, 6)):
        parent = draw.randrange(len(tokens))
        child = draw.choice([*range(VOCAB), *ahead[:1]])
        if (parent, child) not in zip(parents, tokens, strict=True):
            tokens.append(child)
            parents.append(parent)
    confidence = (1.0, *(draw.random() for _ in tokens[1:]))
    return TokenTree(tuple(tokens), tuple(parents), confidence, ("", *["a"] * (len(tokens) - 1)))


def proposers() -> Iterator[tuple[str, Proposer]]:
    for seed in range(6):

        def draw(text: Text, seed: int = seed) -> random.Random:
            return random.Random(f"{seed} {text}")

        def knows_nothing(text: Text, ahead: Text, draw: Callable = draw) -> TokenTree:
            return random_tree(draw(text), text[-1], ())

        def knows_the_noise(text: Text, ahead: Text, draw: Callable = draw) -> TokenTree:
            # With shared noise the draft depends on the same randomness as the choice.
            return random_tree(draw((*text, *ahead[:2])), text[-1], ahead)

        def pruned(text: Text, ahead: Text, draw: Callable = draw) -> TokenTree:
            tree = random_tree(draw((*text, *ahead[:2])), text[-1], ahead)
            return tree.prune(draw(ahead).randint(0, 3))

        def merged(text: Text, ahead: Text, draw: Callable = draw) -> TokenTree:
            first = random_tree(draw(text), text[-1], ahead)
            return first.merge(random_tree(draw(ahead), text[-1], ahead)).prune(5)

        for propose in (knows_nothing, knows_the_noise, pruned, merged):
            yield f"{propose.__name__}-{seed}", propose


@pytest.mark.parametrize(
    ("name", "propose"), list(proposers()), ids=lambda x: x if type(x) is str else ""
)
def test_coupled_emits_the_targets_distribution(name: str, propose: Proposer) -> None:
    assert largest_error(coupled, propose) <= 1e-12


def accept_likely_children(tree: TokenTree, logits: Tensor, row: Chooser) -> Verdict:
    """The naive way: accept a drafted child that the target finds likely enough."""
    path, tokens = [0], []
    while True:
        token = row.choose(logits[path[-1]])
        children = [n for n in range(1, tree.num_nodes) if tree.parents[n] == path[-1]]
        likely = [n for n in children if logits[path[-1]][tree.tokens[n]].exp() > 0.3]
        if row.is_done or not likely:
            return Verdict(tuple(path), (*tokens, token))
        path.append(likely[0])
        tokens.append(tree.tokens[likely[0]])
        row.chosen[-1] = tokens[-1]  # type: ignore[attr-defined]


def test_the_enumeration_catches_a_naive_rule() -> None:
    errors = [largest_error(accept_likely_children, propose) for _, propose in proposers()]
    assert max(errors) > 0.01


def test_every_small_tree_leaves_the_walk_exact() -> None:
    """All trees of up to three drafted nodes below one token, one at a time."""
    for parents in [(-1,), *((-1, 0, *rest) for rest in [(), (0,), (1,), (0, 0), (0, 1), (1, 2)])]:
        for tokens in product(range(VOCAB), repeat=len(parents) - 1):
            pairs = list(zip(parents[1:], tokens, strict=True))
            if len(set(pairs)) < len(pairs):
                continue

            def propose(text: Text, ahead: Text, p: Text = parents, t: Text = tokens) -> TokenTree:
                return TokenTree((text[-1], *t), p, (1.0,) * len(p), ("",) * len(p))

            assert largest_error(coupled, propose) <= 1e-12


class Greedy(Enumerated):
    """Chooses the argmax."""

    is_greedy = True

    def __init__(self) -> None:
        super().__init__(())

    def choose(self, logits: Tensor) -> int:
        assert torch.equal(logits, logits_after(tuple(self.chosen)))
        self.chosen.append(int(logits.argmax()))
        return self.chosen[-1]


@pytest.mark.parametrize(
    ("name", "propose"), list(proposers()), ids=lambda x: x if type(x) is str else ""
)
def test_greedy_emits_the_one_greedy_text(name: str, propose: Proposer) -> None:
    text: Text = ()
    while len(text) < LENGTH:
        text += (int(np.argmax(target_probability(text))),)
    row = Greedy()
    row.choose(logits_after(()))
    while not row.is_done:
        tree = propose(tuple(row.chosen), text[len(row.chosen) :])
        VERIFIERS["greedy"](tree, scored(tree, tuple(row.chosen)), row)
    assert tuple(row.chosen) == text


def test_gumbel_max_on_a_lattice_of_uniforms_converges_to_softmax() -> None:
    """argmax(l + g) over *all* outcomes of k-bit uniforms, counted: the error falls as 2^-k, so
    that 32 bits leave less than 1e-8."""
    logits = np.log(np.array([0.6, 0.3, 0.1]))
    errors = []
    for bits in (5, 6, 7):
        uniform = (np.arange(2**bits) + 0.5) / 2**bits
        noise = -np.log(-np.log(uniform))
        scores = np.stack(
            np.meshgrid(*(logit + noise for logit in logits), indexing="ij"), axis=-1
        ).reshape(-1, VOCAB)
        counts = np.bincount(scores.argmax(axis=1), minlength=VOCAB)
        errors.append(np.abs(counts / len(scores) - np.exp(logits)).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] * 2.0 ** (7 - 32) < 1e-8


def test_a_drafter_with_the_same_noise_proposes_the_targets_choice_more_often() -> None:
    """The point of coupling: top-1 of log q + g meets argmax of log p + g more often than a draw
    from q of its own would, and no less than the overlap of p and q squared would suggest."""
    generator = torch.Generator().manual_seed(0)
    log_p = torch.log_softmax(torch.randn(20, generator=generator) * 2, 0)
    log_q = torch.log_softmax(log_p + 0.5 * torch.randn(20, generator=generator), 0)
    trials = 2000
    met = sum(
        int((log_p + g).argmax()) == int((log_q + g).argmax())
        for g in (gumbel(0, position, 20) for position in range(trials))
    )
    independent = float((log_p.exp() * log_q.exp()).sum())
    overlap = float(torch.minimum(log_p.exp(), log_q.exp()).sum())
    assert independent + 0.2 < met / trials <= overlap + 0.03
