"""token_recycling: what the target said is found again, by whom it may be, and drafted as the
target chooses."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import FAMILIES
from ragged import engine_of, requests_of

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.token_recycling import TokenRecycling
from mmspec.drafters.token_recycling.likeliest import likeliest
from mmspec.drafters.token_recycling.successors import Context, Found, Successors
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.noise import gumbel
from mmspec.requests import Request, Result
from mmspec.state import Placement, Prefill, Prompt, Scores, Verdict
from mmspec.target.probe import probe
from mmspec.tree import TokenTree

VOCAB = 112
PLAIN = {"top_k": 0, "temperature": 1.0}


def all_said(**settings: Any) -> TokenRecycling:
    """Keeps whatever was said, and drafts all it can."""
    return TokenRecycling(**{"top_k": VOCAB, "max_depth": 4, "min_confidence": 0.0} | settings)


def texts(results: Sequence[Result]) -> list[tuple[int, ...]]:
    return [result.tokens for result in results]


# What is kept


class Slow:
    """Successors as a list of all that was said."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._said: list[tuple[Context, list[int], list[float]]] = []

    def add(self, told: Sequence[tuple[Context, list[int], list[float]]]) -> None:
        for one in told:
            self._said = [said for said in self._said if said[0] != one[0]]
            self._said = [*self._said, one][-self._size :]

    def after(self, context: Context) -> Found | None:
        for is_exact in (True, False):
            for said, tokens, logits in reversed(self._said):
                if said == context or (not is_exact and said[1] == context[1]):
                    return Found(is_exact, tokens, logits)
        return None


@pytest.mark.parametrize("size", [1, 2, 7, 40, 1000])
def test_the_newest_is_found_of_both_tokens_or_else_of_the_last_one(size: int) -> None:
    draw = random.Random(size)
    successors, slow = Successors(size, 3), Slow(size)

    def context() -> Context:
        return draw.randrange(6), draw.randrange(9)

    for _ in range(150):
        told = [
            (context(), draw.sample(range(50), 3), [draw.randrange(99) / 4.0] * 3)
            for _ in range(draw.randrange(5))
        ]
        successors.add(told)
        slow.add(told)
        asked = [context() for _ in range(8)]
        assert successors.after(asked) == [slow.after(one) for one in asked]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("vocab", "k"), [(3, 3), (64, 5), (65, 1), (640, 10), (700, 8), (4097, 9)])
def test_the_likeliest_are_those_of_the_whole_vocabulary(
    vocab: int, k: int, dtype: torch.dtype
) -> None:
    logits = torch.randn(5, vocab, generator=torch.Generator().manual_seed(k)).to(dtype)
    values, tokens = likeliest(logits, k)
    assert torch.equal(values, logits.topk(k).values.float())
    assert torch.equal(logits.gather(1, tokens).float(), values)
    assert all(len(set(row)) == k for row in tokens.tolist())


# What is drafted


def forgetful() -> Engine:
    """Its target looks at a text's last token alone, as nothing is attended to."""
    model = FAMILIES["llama"].build(torch.float64)
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    options: dict[str, Any] = {"controller": "fixed", "max_nodes": 64, "max_rows": 3}
    return Engine(probe(model)[0], None, [all_said()], **options)


@pytest.mark.parametrize("sampling", ["greedy", "t1", {"temperature": 0.7, "top_p": 0.9}])
def test_of_a_target_that_looks_at_one_token_what_was_said_once_is_drafted_right(
    sampling: Any,
) -> None:
    """Sampled as well: it is drafted under the noise that the target chooses with."""
    engine = forgetful()
    requests = requests_of("llama", sampling, new=(60, 60, 60))
    for _ in range(3):  # so that whatever the text comes to was said before
        results = engine.generate(requests)
    assert texts(results) == texts(engine.generate(requests, speculate=False))
    for result in results:
        full, steps = 4 + 1, result.stats.steps
        assert steps <= math.ceil((len(result.tokens) - 1) / full), result.stats


def session_of(
    drafter: TokenRecycling, *, is_greedy: bool = False, namespace: str | None = ""
) -> Any:
    prompt = Prompt(torch.tensor([5, 6]), namespace=namespace)
    guide = DraftGuide(is_greedy, seed=11, sample=2, prompt_length=2)
    return drafter.start(prompt, Prefill(torch.zeros(VOCAB), Placement(0, (0,))), guide)


def tell(session: Any, text: Sequence[int], logits: torch.Tensor) -> None:
    """A plain step behind `text`, in which the target says `logits` (vocab,)."""
    session.propose(text, 8)
    root = TokenTree.root(text[-1])
    session.observe(root, Verdict((0,), (int(logits.argmax()),)), Scores(logits.unsqueeze(0)))


@pytest.mark.parametrize("is_greedy", [True, False])
def test_the_first_child_is_what_the_target_would_choose_if_it_said_the_same(
    is_greedy: bool,
) -> None:
    session = session_of(all_said(max_depth=1), is_greedy=is_greedy)
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(0))
    tell(session, [5, 6, 7], logits)
    for length in (3, 4, 9):  # where 6, 7 stands at other places, and other noise
        text = [*range(length - 2), 6, 7]
        noise = 0.0 if is_greedy else gumbel(11, length - 2, VOCAB, sample=2)
        tree = session.propose(text, 8)
        ranked = sorted(tree.children(0), key=lambda node: -tree.confidence[node])
        found = [tree.tokens[node] for node in ranked]
        assert found == (logits + noise).topk(8).indices.tolist()


def test_both_tokens_count_before_the_last_alone() -> None:
    session = session_of(all_said(max_depth=1), is_greedy=True)
    one, other = torch.zeros(VOCAB), torch.zeros(VOCAB)
    one[20], other[30] = 9.0, 9.0
    tell(session, [1, 7], one)
    tell(session, [2, 7], other)
    said = {before: session.propose([before, 7], 1).tokens for before in (1, 2, 3)}
    assert said == {1: (7, 20), 2: (7, 30), 3: (7, 30)}
    assert session.propose([7], 1).tokens == (7, 30), "no token stands before it"


def test_what_was_rejected_is_believed_less() -> None:
    session = session_of(all_said(max_depth=1), is_greedy=True)
    logits = torch.zeros(2, VOCAB)
    logits[:, 20] = 9.0
    tell(session, [6, 7], logits[0])
    believed = list[float]()
    for _ in range(2):
        tree = session.propose([6, 7], 1)
        believed.append(tree.confidence[1])
        session.observe(tree, Verdict((0,), (21,)), Scores(logits))
    assert believed[1] < believed[0]


def test_what_stands_counts_before_what_was_rejected() -> None:
    session = session_of(all_said(max_depth=1), is_greedy=True)
    session.propose([1, 5], 8)
    tree = TokenTree((5, 7, 8, 7), (-1, 0, 0, 2), (1.0, 0.5, 0.5, 0.5), ("", *["another"] * 3))
    logits = torch.zeros(4, VOCAB)
    logits[1, 20] = logits[3, 30] = 9.0
    session.observe(tree, Verdict((0, 1), (7, 20)), Scores(logits))
    said = {before: session.propose([before, 7], 1).tokens for before in (5, 8, 3)}
    assert said == {5: (7, 20), 8: (7, 30), 3: (7, 20)}


def test_what_is_not_finite_is_not_kept_and_what_is_forbidden_is_not_drafted() -> None:
    session = session_of(all_said(max_depth=2), is_greedy=True)
    for broken in (torch.nan, torch.inf):
        logits = torch.randn(VOCAB)
        logits[3] = broken
        tell(session, [5, 6, 7], logits)
        assert session.propose([5, 6, 7], 8).num_nodes == 1
    logits = torch.full((VOCAB,), -torch.inf)
    logits[[4, 9]] = torch.tensor([1.0, 2.0])
    tell(session, [5, 6, 7], logits)
    assert session.propose([5, 6, 7], 8).tokens == (7, 9, 4)


def test_it_learns_in_the_steps_that_it_was_asked_in() -> None:
    session = session_of(all_said(max_depth=1), is_greedy=True)
    root, scores = TokenTree.root(7), Scores(torch.randn(1, VOCAB))
    session.observe(root, Verdict((0,), (1,)), scores)
    assert session.propose([6, 7], 8).num_nodes == 1
    session.observe(root, Verdict((0,), (1,)), scores)
    assert session.propose([6, 7], 8).num_nodes == 9


# Whose it is


def test_a_namespace_learns_from_its_own_requests_alone() -> None:
    drafter = all_said(max_depth=1)
    logits = torch.randn(VOCAB)

    def knows(namespace: str | None) -> bool:
        return session_of(drafter, namespace=namespace).propose([6, 7], 4).num_nodes > 1

    for namespace in ("", "other", None):
        session = session_of(drafter, namespace=namespace)
        tell(session, [6, 7], logits)
        session.propose([6, 7], 4)  # which reads it
    assert knows("") and knows("other") and not knows("third") and not knows(None)
    drafter.forget("other")
    assert knows("") and not knows("other")
    drafter.forget()
    assert not knows("")


def test_few_namespaces_are_kept_the_newest_used() -> None:
    drafter = all_said(max_depth=1)
    for namespace in range(8):
        session = session_of(drafter, namespace=str(namespace))
        tell(session, [6, 7], torch.randn(VOCAB))
        session.propose([6, 7], 4)
    session_of(drafter, namespace="0")  # used again
    session_of(drafter, namespace="8")
    known = [
        session_of(drafter, namespace=str(n)).propose([6, 7], 4).num_nodes > 1 for n in (0, 2, 1)
    ]
    assert known == [True, True, False]


def test_a_cleared_cache_has_forgotten_it() -> None:
    drafter = all_said()
    engine = engine_of("llama", drafter)
    request = requests_of("llama", "greedy")[0]
    engine.generate(request)
    known = engine.generate(request).stats.steps
    engine.clear_cache()
    assert engine.generate(request).stats.steps > known


def test_what_one_engines_target_said_is_no_other_engines() -> None:
    drafter, request = all_said(), requests_of("llama", "greedy")[0]
    one, other = engine_of("llama", drafter), engine_of("llama", drafter)
    first = one.generate(request).stats.steps
    assert one.generate(request).stats.steps < first
    assert other.generate(request).stats.steps == first


@pytest.mark.parametrize(
    ("setting", "value"),
    [("top_k", 0), ("max_depth", 0), ("min_confidence", 1.5), ("contexts", 0)],
)
def test_settings_that_make_no_sense(setting: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"drafter\.token_recycling\.{setting}={value}"):
        TokenRecycling(**{setting: value})


def test_fewer_contexts_than_a_tree_has_nodes() -> None:
    request = Request({"input_ids": torch.arange(9).unsqueeze(0)}, max_new_tokens=20, temperature=0)
    engine = engine_of("llama", all_said(contexts=2))
    assert engine.generate(request).tokens == engine.generate(request, speculate=False).tokens
