"""The rules that divide by q, by enumeration: every draw, every acceptance, every residual.

Tables give the target's and the drafter's distribution after every prefix. The loop (draw a tree ->
verify -> next node 0) runs over all outcomes; the emitted texts' distribution must be the target's.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from math import prod
from typing import Any

import pytest
import torch
from outcomes import Trace, distribution, outcomes
from torch import Tensor

from mmspec.errors import ConfigError
from mmspec.state import Verdict
from mmspec.tree import TokenTree
from mmspec.verify import (
    VERIFIERS,
    Nodes,
    Odds,
    Typical,
    Verifier,
    Weigh,
    Weighed,
    rejection,
)
from mmspec.verify.block import weigh as weigh_block
from mmspec.verify.rejection import residual
from mmspec.verify.typical import threshold

Text = tuple[int, ...]
EXACT = 1e-12


@dataclass(frozen=True)
class World:
    """A vocabulary, texts that end at a length or at `eos`, and two tables of distributions."""

    vocab: int
    length: int
    seed: int = 0
    eos: int | None = None
    sharpness: float = 3.0  # of the target; the drafter has its own
    num_likely: int | None = None  # tokens that q leaves possible: a warper's cut

    def p(self, prefix: Text) -> Tensor:
        return _table(self.vocab, (self.seed, 1, *prefix), self.sharpness, None)

    def q(self, prefix: Text) -> Tensor:
        return _table(self.vocab, (self.seed, 2, *prefix), 2.0, self.num_likely)

    def logits(self, prefix: Text) -> Tensor:
        return self.p(prefix).log()

    def ends(self, text: Text) -> bool:
        return len(text) == self.length or text[-1] == self.eos

    def texts(self) -> dict[Text, float]:
        """The target's own distribution of whole texts."""
        own: dict[Text, float] = defaultdict(float)
        for text in product(range(self.vocab), repeat=self.length):
            ended = next(text[:n] for n in range(1, self.length + 1) if self.ends(text[:n]))
            own[ended] += prod(float(self.p(text[:i])[token]) for i, token in enumerate(text))
        return dict(own)


@cache
def _table(vocab: int, place: Text, sharpness: float, num_likely: int | None) -> Tensor:
    draw = random.Random(str(place))
    weights = torch.tensor([draw.random() ** sharpness for _ in range(vocab)], dtype=torch.float64)
    if num_likely is not None:
        weights[weights.argsort()[:-num_likely]] = 0.0
    return weights / weights.sum()


class EnumeratedRow:
    """A Chooser over all outcomes. It checks that it is shown the logits of the right node."""

    is_greedy = False

    def __init__(self, world: World, trace: Trace, chosen: Text) -> None:
        self._world = world
        self._trace = trace
        self._started = chosen
        self.chosen = chosen

    @property
    def is_done(self) -> bool:
        return self._world.ends(self.chosen)

    def choose(self, logits: Tensor) -> int:
        self._check(logits, ())
        return self._append(self._trace.draw(self._world.p(self.chosen)))

    def weigh(
        self, weigh: Weigh, tree: TokenTree, logits: Tensor, nodes: Sequence[int], *, at: int
    ) -> list[Odds]:
        """Nothing is drawn before it is asked for: the walk's end alone has outcomes."""
        above = len(tree.path_to(at))
        for node in nodes:
            self._check(logits[node], [tree.tokens[n] for n in tree.path_to(node)[above:]])
        chances, rests = _weighed(weigh, Nodes.of(tree, nodes, logits[list(nodes)]))
        return [
            Odds(own[: len(tree.children(node))], partial(self._trace.draw, rest.exp()))
            for node, own, rest in zip(nodes, chances, rests, strict=True)
        ]

    def uniforms(self, count: int) -> Sequence[float]:
        assert self.chosen == self._started, "uniforms of a later place"
        return self._trace.uniforms(count)

    def take(self, token: int, odds: Odds) -> None:
        self._append(token)

    def _append(self, token: int) -> int:
        assert not self.is_done or self.chosen == self._started, "a token after the end"
        self.chosen += (token,)
        return token

    def _check(self, logits: Tensor, ahead: Sequence[int]) -> None:
        expected = self._world.logits((*self.chosen, *ahead))
        assert torch.equal(logits, expected), f"logits of another prefix than {self.chosen}+{ahead}"


_KNOWN: dict[Any, tuple[list[list[float]], Tensor]] = {}  # the same places come again and again


def _weighed(weigh: Weigh, nodes: Nodes) -> tuple[list[list[float]], Tensor]:
    bits = [t.numpy().tobytes() for t in (nodes.scores, nodes.q) if t is not None]
    key = (weigh, rejection.without, *bits, *map(tuple, nodes.drafted))
    if key not in _KNOWN:
        weighed = weigh(nodes)
        _KNOWN[key] = weighed.chances.tolist(), weighed.rests
    return _KNOWN[key]


Drafter = Callable[[World, Trace, Text], TokenTree]


def drawing(*widths: int) -> Drafter:
    """Draws `widths[d]` children below every node of depth d, as a drafter does."""

    def draw(world: World, trace: Trace, text: Text) -> TokenTree:
        return grow(world, trace, text, widths[: world.length - len(text) - 1])

    return draw


def grow(
    world: World,
    trace: Trace,
    text: Text,
    widths: Sequence[int],
    stop: Callable[[Text], bool] = lambda path: False,
) -> TokenTree:
    """`stop` may end a branch for the path down to its node."""
    tokens, parents, paths = [text[-1]], [-1], [text]
    for depth, width in enumerate(widths):
        for node in [n for n, path in enumerate(paths) if len(path) == len(text) + depth]:
            if node and stop(paths[node]):
                continue
            for token in trace.draw_children(world.q(paths[node]), width).tokens:
                tokens.append(token)
                parents.append(node)
                paths.append((*paths[node], token))
    q = torch.stack([world.q(path) for path in paths])
    ones = (1.0,) * len(tokens)
    return TokenTree(tuple(tokens), tuple(parents), ones, ("",) * len(tokens), q)


def scored(world: World, tree: TokenTree, text: Text) -> Tensor:
    """(nodes, vocab): what the target says after each node; node 0 is the last of `text`."""
    paths = [[tree.tokens[n] for n in tree.path_to(node)[1:]] for node in range(tree.num_nodes)]
    return torch.stack([world.logits((*text, *path)) for path in paths])


def emitted(world: World, rule: Verifier, draft: Drafter) -> dict[Text, float]:
    """The distribution of the texts that the loop emits, a sum over all outcomes of every step."""
    total: dict[Text, float] = defaultdict(float)
    pending = {(token,): float(world.p(())[token]) for token in range(world.vocab)}
    while pending:
        text, weight = pending.popitem()
        if world.ends(text):
            total[text] += weight
            continue
        for tokens, probability in one_step(world, rule, draft, text).items():
            longer = (*text, *tokens)
            pending[longer] = pending.get(longer, 0.0) + weight * probability
    return dict(total)


def one_step(world: World, rule: Verifier, draft: Drafter, text: Text) -> dict[Text, float]:
    """The tokens that one step emits after `text` -> their probability."""

    def step(trace: Trace) -> Text:
        row = EnumeratedRow(world, trace, text)
        tree = draft(world, trace, text)
        verdict = rule(tree, scored(world, tree, text), row)
        check_verdict(tree, verdict, row.chosen[len(text) :])
        return verdict.tokens

    return distribution(step)


def check_verdict(tree: TokenTree, verdict: Verdict, chosen: Text) -> None:
    assert verdict.tokens == chosen and len(verdict.path) == len(verdict.tokens)
    assert verdict.path[0] == 0
    for above, node, token in zip(verdict.path, verdict.path[1:], verdict.tokens, strict=False):
        assert tree.parents[node] == above and tree.tokens[node] == token


def largest_error(world: World, rule: Verifier, draft: Drafter) -> float:
    found, own = emitted(world, rule, draft), world.texts()
    return max(abs(found.get(text, 0.0) - own.get(text, 0.0)) for text in own.keys() | found.keys())


# LAW: the texts are the target's

speculative, recursive, block = CHAINS = [
    VERIFIERS[n] for n in ("speculative", "recursive", "block")
]
WORLDS = (
    World(2, 5),
    World(2, 5, seed=1, eos=1),
    World(3, 4, seed=2),
    World(3, 4, seed=3, eos=0, sharpness=8.0),
    World(4, 3, seed=4, num_likely=2),
)
name = lambda value: getattr(getattr(value, "walk", value), "__name__", None)  # noqa: E731


@pytest.mark.parametrize("rule", CHAINS, ids=name)
@pytest.mark.parametrize("world", WORLDS, ids=str)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_drawn_chain_leaves_the_texts_the_targets(
    rule: Verifier, world: World, depth: int
) -> None:
    assert largest_error(world, rule, drawing(*(1,) * depth)) <= EXACT


@pytest.mark.parametrize(
    ("world", "widths"),
    [
        *product(WORLDS, [(2,), (3,), (2, 1), (1, 2)]),
        (World(3, 4, seed=2), (3, 1)),
        (World(3, 4, seed=3, eos=0), (2, 2)),
    ],
    ids=str,
)
def test_a_tree_drawn_without_replacement_leaves_the_texts_the_targets(
    world: World, widths: tuple[int, ...]
) -> None:
    assert largest_error(world, recursive, drawing(*widths)) <= EXACT


@pytest.mark.parametrize("rule", CHAINS, ids=name)
def test_a_branch_may_end_for_its_own_path(rule: Verifier) -> None:
    """At EOS, or where the drafter is unsure of what comes next: the node itself stays."""
    world = World(3, 4, seed=5, eos=0)

    def draft(world: World, trace: Trace, text: Text) -> TokenTree:
        room = (1,) * (world.length - len(text) - 1)
        unsure = lambda path: path[-1] == 0 or float(world.q(path).max()) < 0.6  # noqa: E731
        return grow(world, trace, text, room, unsure)

    lengths = {
        draft(world, trace, (1,)).num_nodes
        for trace in [Trace(decided) for decided in product(range(3), repeat=2)]
    }
    assert len(lengths) > 1, "no branch ended early"
    assert largest_error(world, rule, draft) <= EXACT


@pytest.mark.parametrize("rule", CHAINS, ids=name)
def test_whether_to_draft_may_follow_from_the_steps_before(rule: Verifier) -> None:
    def draft(world: World, trace: Trace, text: Text) -> TokenTree:
        return drawing(1, 1)(world, trace, text) if text[-1] == 0 else TokenTree.root(text[-1])

    assert largest_error(World(3, 4), rule, draft) <= EXACT


@pytest.mark.parametrize("rule", CHAINS, ids=name)
def test_a_perfect_drafter_is_never_rejected(rule: Verifier) -> None:
    class Same(World):
        def q(self, prefix: Text) -> Tensor:
            return self.p(prefix)

    steps = one_step(Same(3, 5), rule, drawing(1, 1, 1), (0,))
    assert all(len(tokens) == 4 or probability < 1e-12 for tokens, probability in steps.items())


@pytest.mark.parametrize("rule", CHAINS, ids=name)
def test_a_certain_target_gets_the_greedy_walk(rule: Verifier) -> None:
    """p one-hot: the draft is accepted as far as it is the target's text, and no further."""

    class Certain(World):
        def p(self, prefix: Text) -> Tensor:
            own = super().p(prefix)
            return torch.zeros_like(own).index_fill_(0, own.argmax(), 1.0)

    world = Certain(3, 4)
    ((text, probability),) = [item for item in world.texts().items() if item[1] > 0]
    assert probability == 1.0
    found = emitted(world, rule, drawing(1, 1))
    assert found[text] == pytest.approx(1.0, abs=EXACT)


@pytest.mark.parametrize("rule", [*CHAINS, Typical().rule], ids=name)
def test_a_greedy_request_is_the_greedy_walk_down_any_tree(rule: Verifier) -> None:
    class Greedy(EnumeratedRow):
        is_greedy = True

        def choose(self, logits: Tensor) -> int:
            return self._append(int(logits.argmax()))

    world = World(3, 5)
    best: Text = (1,)
    while len(best) < 4:
        best += (int(world.p(best).argmax()),)
    wrong = (best[1] + 1) % 3
    tree = TokenTree((1, wrong, best[1], best[2]), (-1, 0, 0, 2), (1.0,) * 4, ("",) * 4)
    verdict = rule(tree, scored(world, tree, (1,)), Greedy(world, Trace(), (1,)))
    assert verdict == Verdict((0, 2, 3), best[1:])


# LAW: how much is accepted


def accepted(world: World, rule: Verifier, draft: Drafter, text: Text) -> float:
    """Expected number of drafted tokens that a step accepts."""
    steps = one_step(world, rule, draft, text).items()
    return sum(probability * (len(tokens) - 1) for tokens, probability in steps)


@pytest.mark.parametrize("depth", [2, 3])
def test_a_block_accepts_no_less_than_one_token_after_the_other(depth: int) -> None:
    gains = []
    for seed, sharpness in product(range(4), (1.0, 4.0)):
        world = World(3, 9, seed, sharpness=sharpness)
        draft = drawing(*(1,) * depth)
        gains.append(
            accepted(world, block, draft, (0,)) - accepted(world, speculative, draft, (0,))
        )
    assert min(gains) > -EXACT
    assert max(gains) > 0.01


def test_one_child_is_accepted_as_often_as_the_overlap_of_p_and_q() -> None:
    world = World(4, 9)
    overlap = float(torch.minimum(world.p((0,)), world.q((0,))).sum())
    assert accepted(world, speculative, drawing(1), (0,)) == pytest.approx(overlap, abs=EXACT)


def test_what_is_left_of_p_is_a_distribution_also_where_nothing_is() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.25, 0.5, 0.25])
    assert residual(p, q).tolist() == [1.0, 0.0, 0.0]
    assert torch.equal(residual(p, p), p)


def test_more_children_are_accepted_more_often_and_all_tokens_always() -> None:
    world = World(3, 9, seed=6)
    rates = [accepted(world, recursive, drawing(k), (0,)) for k in (1, 2, 3)]
    assert rates[0] + 0.01 < rates[1] < rates[2] == pytest.approx(1.0, abs=EXACT)


def test_on_a_chain_recursive_is_speculative() -> None:
    world = World(3, 4, seed=7)
    one = one_step(world, speculative, drawing(1, 1, 1), (0,))
    other = one_step(world, recursive, drawing(1, 1, 1), (0,))
    assert one.keys() == other.keys()
    assert all(abs(one[tokens] - other[tokens]) < EXACT for tokens in one)


# The enumeration finds what is wrong


def q_is_not_warped(world: World, trace: Trace, text: Text) -> TokenTree:
    """Drawn from q at temperature 0.5, handed over as q at 1."""

    class Warped(World):
        def q(self, prefix: Text) -> Tensor:
            squared = super().q(prefix) ** 2
            return squared / squared.sum()

    warped = Warped(world.vocab, world.length, world.seed)
    tree = drawing(1, 1)(warped, trace, text)
    paths = [tuple(tree.tokens[n] for n in tree.path_to(i)[1:]) for i in range(tree.num_nodes)]
    return replace(tree, q=torch.stack([world.q((*text, *path)) for path in paths]))


def pruned_by_what_was_drawn(world: World, trace: Trace, text: Text) -> TokenTree:
    """Tokens that the drafter thinks unlikely are left out after they were drawn."""
    tree = drawing(1, 1)(world, trace, text)
    likely = [n == 0 or float(world.q(text)[tree.tokens[1]]) > 0.4 for n in range(tree.num_nodes)]
    kept = [n for n in range(tree.num_nodes) if likely[n]]
    assert tree.q is not None
    return replace(tree.keep(kept), q=tree.q[kept])


def repeats_are_filled_up(world: World, trace: Trace, text: Text) -> TokenTree:
    """Two independent draws; where they are the same the likeliest other token is the second."""
    q = world.q(text)
    first, second = trace.draw(q), trace.draw(q)
    if first == second:
        second = next(token for token in q.argsort(descending=True).tolist() if token != first)
    return siblings(world, text, [first, second])


def sorted_by_token(world: World, trace: Trace, text: Text) -> TokenTree:
    """Drawn without replacement, but handed over in another order."""
    tree = drawing(2)(world, trace, text)
    return replace(tree, tokens=(tree.tokens[0], *sorted(tree.tokens[1:])))


def siblings(world: World, text: Text, tokens: Sequence[int]) -> TokenTree:
    nodes = len(tokens) + 1
    q, ones = world.q(text).expand(nodes, -1), (1.0,) * nodes
    return TokenTree((text[-1], *tokens), (-1, *(0,) * len(tokens)), ones, ("",) * nodes, q)


def the_top_ones(world: World, trace: Trace, text: Text) -> TokenTree:
    """The likeliest token, as if it had been drawn."""
    return siblings(world, text, [int(world.q(text).argmax())])


NAIVE = [
    *((rule, q_is_not_warped) for rule in CHAINS),
    *((rule, pruned_by_what_was_drawn) for rule in CHAINS),
    (recursive, repeats_are_filled_up),
    (recursive, sorted_by_token),
    *((rule, the_top_ones) for rule in CHAINS),
]


@pytest.mark.parametrize(("rule", "draft"), NAIVE, ids=name)
def test_the_enumeration_catches(rule: Verifier, draft: Drafter) -> None:
    worlds = [World(3, 3, seed) for seed in range(4)]
    assert max(largest_error(world, rule, draft) for world in worlds) > 0.01


def test_the_enumeration_catches_a_rule_that_draws_a_rejected_token_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Children drawn without replacement, tested as if each had been drawn from the whole of q."""
    worlds = [World(4, 3, seed, sharpness=2.0) for seed in range(4)]
    assert max(largest_error(world, recursive, drawing(2)) for world in worlds) <= EXACT
    monkeypatch.setattr(rejection, "without", lambda q, tokens: q)
    assert max(largest_error(world, recursive, drawing(2)) for world in worlds) > 0.01


def test_independent_draws_with_equal_ones_joined_are_exact_too() -> None:
    """Whether there is a second child says nothing of which token it is."""

    def draft(world: World, trace: Trace, text: Text) -> TokenTree:
        q = world.q(text)
        return siblings(world, text, list(dict.fromkeys([trace.draw(q), trace.draw(q)])))

    assert max(largest_error(World(3, 3, seed), recursive, draft) for seed in range(4)) <= EXACT


def test_a_draft_that_shares_the_verifications_noise_is_not_exact() -> None:
    """Uniforms on a lattice: one for draw and test together is wrong, one for each is right."""
    p = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    lattice = ((torch.arange(100) + 0.5) / 100).tolist()
    rest = residual(p, q)
    chances = [float(weighed(rejection.weigh, [p], [q], [[t]]).chances) for t in range(3)]

    def outcome(drawn_by: float, tested_by: float) -> Tensor:
        token = int((q.cumsum(0) < drawn_by).sum())
        kept = torch.eye(3, dtype=torch.float64)[token]
        return kept if tested_by < chances[token] else rest

    shared = torch.stack([outcome(u, u) for u in lattice]).mean(0)
    apart = torch.stack([outcome(u, v) for u, v in product(lattice, lattice)]).mean(0)
    assert float((shared - p).abs().max()) > 0.01
    assert float((apart - p).abs().max()) < 1e-9


def test_typical_acceptance_is_lossy_and_says_so() -> None:
    rule = VERIFIERS["typical_lossy"]
    assert not rule.is_lossless and "LOSSY" in str(Typical.__doc__)
    assert largest_error(World(3, 3), rule, drawing(1, 1)) > 0.01
    assert all(VERIFIERS[name].is_lossless for name in VERIFIERS if name != "typical_lossy")


# ORACLE: the cores by hand


def weighed(
    weigh: Weigh, p: Sequence[Tensor], q: Sequence[Tensor], drafted: Sequence[Sequence[int]]
) -> Weighed:
    return weigh(Nodes(torch.stack(list(p)).log(), drafted, torch.stack(list(q))))


def test_block_by_hand() -> None:
    """Two tokens; x1 = 0 is half as likely to the target as to the drafter, x2 = 0 twice."""
    p = torch.tensor([[0.4, 0.6], [0.8, 0.2], [0.5, 0.5]], dtype=torch.float64)
    q = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.0, 0.0]], dtype=torch.float64)
    # p_1 = 1/2, p_2 = min(1/2 * 2, 1) = 1: the whole block is kept where one token at a time would
    # lose half of it; h_1 = rest / (rest + 1 - p_1) with rest = max(p_1 * .8 - .4, 0) + 0 = 0.
    found = weighed(weigh_block, p, q, [[0], [0], []])
    assert found.chances[:2, 0].tolist() == pytest.approx([0.0, 1.0])
    assert found.rests[0].exp().tolist() == pytest.approx([0.0, 0.4])  # max(p - q, 0)
    assert found.rests[2].exp().tolist() == pytest.approx([0.5, 0.5])
    # x2 = 1: p_2 = 1/2 * .2 / .6 = 1/6
    assert float(weighed(weigh_block, p, q, [[0], [1], []]).chances[1]) == pytest.approx(1 / 6)


def test_rejection_by_hand() -> None:
    p, q = torch.tensor([0.1, 0.3, 0.6]).double(), torch.tensor([0.5, 0.3, 0.2]).double()
    # Rejected: p -> (0, 0, 1), q -> (0, .6, .4): token 1 has no chance, token 2 is certain.
    for second, chance in ((1, 0.0), (2, 1.0)):
        found = weighed(rejection.weigh, [p], [q], [[0, second]])
        assert found.chances.tolist() == [pytest.approx([0.2, chance])]  # .1 / .5
        assert found.rests.exp().tolist() == [pytest.approx([0.0, 0.0, 1.0])]


@pytest.mark.parametrize("rule", ["recursive", "block", "typical_lossy"])
def test_several_trees_are_weighed_as_each_is(rule: str) -> None:
    """Bit by bit; trees of other shapes, a single node among them."""
    weigh, world = VERIFIERS[rule].weigh, World(4, 9, seed=8)
    assert weigh is not None
    widths = [(2, 1), (3,), (1, 1, 1), (1, 2)] if rule != "block" else [(1, 1), (1,), (1, 1, 1)]
    trees = [drawing(*own)(world, Trace(), (n,)) for n, own in enumerate(widths)]
    trees.insert(1, replace(TokenTree.root(3), q=torch.zeros(1, 4, dtype=torch.float64)))
    each = [Nodes.of(t, range(t.num_nodes), scored(world, t, t.tokens[:1])) for t in trees]
    together = weigh(Nodes.joined(each, torch.cat([nodes.scores for nodes in each])))
    assert torch.equal(together.rests, torch.cat([weigh(nodes).rests for nodes in each]))
    alone = [row for nodes in each for row in weigh(nodes).chances.tolist()]
    drafted = [tokens for nodes in each for tokens in nodes.drafted]
    for tokens, own, row in zip(drafted, alone, together.chances.tolist(), strict=True):
        assert row[: len(tokens)] == own[: len(tokens)]


def test_the_typical_threshold_falls_with_entropy() -> None:
    sure, unsure = torch.tensor([1.0, 0.0]).double(), torch.full((8,), 0.125).double()
    assert float(threshold(sure, epsilon=0.09, delta=0.3)) == pytest.approx(0.09)
    assert float(threshold(unsure, epsilon=0.09, delta=0.3)) == pytest.approx(0.3 / 8)


def test_typical_takes_the_longest_path_then_the_likelier() -> None:
    #        0
    #      / | \        all tokens are typical but the last child
    #     a  b  c
    #        |
    #        d
    world = World(5, 9, sharpness=0.1)
    unlikely = int(world.p((0,)).argmin())
    a, b = [token for token in range(5) if token != unlikely][:2]
    tree = TokenTree((0, a, b, unlikely, 1), (-1, 0, 0, 0, 2), (1.0,) * 5, ("",) * 5)
    limit = float(world.p((0,)).min()) + 1e-9
    rule = Typical(epsilon=limit, delta=1.0)
    runs = [
        rule(tree, scored(world, tree, (0,)), EnumeratedRow(world, Trace(), (0,))),
        rule(tree.keep([0, 1, 2, 3]), scored(world, tree.keep([0, 1, 2, 3]), (0,)),
             EnumeratedRow(world, Trace(), (0,))),
    ]  # fmt: skip
    likelier = 1 if world.p((0,))[a] > world.p((0,))[b] else 2
    assert [run.path for run in runs] == [(0, 2, 4), (0, likelier)]


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_typical_says_what_was_chosen_also_where_a_text_ends_in_a_block(world: World) -> None:
    """Each step's verdict is checked, as of the other rules."""
    texts = emitted(world, VERIFIERS["typical_lossy"], drawing(2, 1))
    assert all(map(world.ends, texts)) and abs(sum(texts.values()) - 1.0) <= EXACT


# The conditions are checked

DRAWN_CHAIN = drawing(1, 1)(World(3, 9), Trace(), (0,))
DRAWN_TREE = drawing(2)(World(3, 9), Trace(), (0,))


def verify(rule: Verifier, tree: TokenTree) -> Verdict:
    world = World(3, 9)
    return rule(tree, scored(world, tree, (0,)), EnumeratedRow(world, Trace(), (0,)))


@pytest.mark.parametrize("rule", CHAINS, ids=name)
def test_a_tree_without_q_is_refused(rule: Verifier) -> None:
    with pytest.raises(ConfigError, match=r"without q.*verifier=coupled"):
        verify(rule, replace(DRAWN_CHAIN, q=None))
    with pytest.raises(ConfigError, match="without q"):
        verify(rule, DRAWN_CHAIN.prune(1))
    with pytest.raises(ConfigError, match="without q"):
        verify(rule, DRAWN_CHAIN.merge(TokenTree.root(0)))


@pytest.mark.parametrize("rule", [speculative, block], ids=name)
def test_chain_rules_refuse_what_is_no_chain(rule: Verifier) -> None:
    nodes = f"tree of {DRAWN_TREE.num_nodes - 1} drafted nodes"
    with pytest.raises(ConfigError, match=f"{nodes} that is not a chain.*verifier=recursive"):
        verify(rule, DRAWN_TREE)


@pytest.mark.parametrize("rule", CHAINS, ids=name)
def test_node_0_alone_is_plain_sampling(rule: Verifier) -> None:
    world = World(3, 9)
    found = one_step(world, rule, lambda world, trace, text: TokenTree.root(text[-1]), (0,))
    assert [found[(token,)] for token in range(3)] == pytest.approx(world.p((0,)).tolist())


@pytest.mark.parametrize("rule", CHAINS, ids=name)
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda q: q.log(), "cannot be what they were drawn from"),
        (lambda q: 2 * q, "rows sum to 2"),
        (lambda q: torch.cat([2 * q[:1], q[1:]]), "rows sum to 1 to 2"),
        (lambda q: torch.eye(3)[[(DRAWN_CHAIN.tokens[1] + 1) % 3] * 3], "least probability is 0"),
        (lambda q: q[:, :2], "expected the target's vocabulary"),
        (lambda q: q * torch.nan, "cannot be what they were drawn from"),
    ],
)
def test_a_q_that_nothing_was_drawn_from_is_refused(
    rule: Verifier, change: Callable[[Tensor], Tensor], complaint: str
) -> None:
    assert DRAWN_CHAIN.q is not None
    with pytest.raises(ConfigError, match=complaint):
        verify(rule, replace(DRAWN_CHAIN, q=change(DRAWN_CHAIN.q)))


@pytest.mark.parametrize("weigh", [rejection.weigh, weigh_block])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_q_in_half_precision_is_taken(weigh: Weigh, dtype: torch.dtype) -> None:
    """Rounded to bfloat16, 300 equal probabilities sum to 0.998."""
    q = torch.full((2, 300), 1 / 300).to(dtype)
    found = weigh(Nodes(torch.zeros(2, 300), [[1], []], q))
    assert not found.chances[0].isnan()


@pytest.mark.parametrize("value", [0.0, 1.5, float("nan")])
def test_typical_refuses_what_is_no_threshold(value: float) -> None:
    with pytest.raises(ConfigError, match="expected a number in"):
        Typical(epsilon=value)
    with pytest.raises(ConfigError, match="expected a number in"):
        Typical(delta=value)


def test_the_enumeration_is_complete() -> None:
    """Three coins and a die: probabilities of all runs, none twice."""

    def program(trace: Trace) -> tuple[bool, ...]:
        coins = [uniform < 0.25 for uniform in trace.uniforms(2)]
        return (*coins, trace.choose([1.0, 2.0, 0.0, 1.0]) == 1)

    runs = list(outcomes(program))
    assert len(runs) == 12 and sum(weight for weight, _ in runs) == pytest.approx(1.0)
    assert distribution(program)[(True, True, True)] == pytest.approx(0.25**2 * 0.5)
