"""What holds of every drafter that a config can name: one that is registered has to keep it."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from asked import Asked
from families import FAMILIES, prompt_inputs
from fuzz.judge import left_by
from fuzz.play import at_once
from matrix import model_of
from outcomes import Trace, distribution, texts_of
from ragged import engine_of, requests_of
from small_drafters import DRAWING, SMALL, small
from torch import Tensor

from mmspec.build_drafters import DRAFTERS
from mmspec.drafters.base import DrafterForTarget
from mmspec.drafters.draw import Drawing, draw_level
from mmspec.drafters.growing import branching
from mmspec.drafters.medusa import drawn_paths
from mmspec.drafters.proposal import Proposal
from mmspec.engine import Engine
from mmspec.noise import Place
from mmspec.requests import Result
from mmspec.sampling import Sampler
from mmspec.target import Target
from mmspec.tree import TokenTree

VOCAB = 112
# Those that hold keys and values of their own, or a view of the target's.
HOLDERS = (
    "draft_model",
    "compressed_kv",
    "compressed_kv/cape",
    "eagle",
    "eagle/version 1",
    "mtp",
    "glide",
    "dflash",
    "cascade",
)

# Those that make a forward for each level of a tree.
LEVELS = ("draft_model", "compressed_kv", "layer_skip", "eagle", "mtp", "glide", "cascade")


@cache
def plain(sampling: str) -> tuple[tuple[int, ...], ...]:
    engine = engine_of("llama", small("prompt_lookup"))
    return texts(engine.generate(requests_of(sampling=sampling), speculate=False))


def texts(results: Sequence[Result]) -> tuple[tuple[int, ...], ...]:
    return tuple(result.tokens for result in results)


def test_every_drafter_that_is_registered_is_here() -> None:
    assert {name.split("/")[0] for name in SMALL} == DRAFTERS.keys()
    for name in SMALL:
        assert small(name).name == name.split("/")[0]
    for name in DRAWING:
        assert small(name, draw="sample").draws, "of a drafter that draws"  # type: ignore[attr-defined]
        assert not small(name).draws  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("sampling", ["greedy", "t1"])
def test_a_draft_begins_at_the_text_and_is_within_its_budget(
    name: str, sampling: str, asked: list[Asked]
) -> None:
    for max_nodes in (0, 1, 3, 20):
        results = engine_of("llama", small(name), max_nodes=max_nodes).generate(
            requests_of(sampling=sampling)
        )
        assert texts(results) == plain(sampling), "another text"
    for one in asked:
        one.tree.check_integrity(VOCAB)
        assert one.tree.tokens[0] == one.text[-1]
        assert one.tree.num_nodes - 1 <= one.budget
        assert set(one.tree.drafters[1:]) <= {one.drafter} and one.tree.q is None
    assert min(one.budget for one in asked) == 1, "nobody is asked for nothing"
    assert any(one.tree.num_nodes > 2 for one in asked), "it hardly drafts"


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("rule", ["coupled", "speculative"])
def test_no_forward_is_made_for_what_the_text_has_no_room_for(
    name: str, rule: str, asked: list[Asked]
) -> None:
    """Of its last tokens one is the target's own."""
    draws: dict[str, Any] = {"draw": "sample", "profile": (1,) * 3} if rule != "coupled" else {}
    (request,) = requests_of(sampling="t1")[:1]
    engine = engine_of("llama", small(name, **draws), verifier=rule)
    (result,) = engine.generate([request])
    assert result.finish_reason == "length"
    length = result.stats.prompt_tokens + len(result.tokens)
    deepest = max(max(one.tree.depths) for one in asked)
    for one in asked:
        assert max(one.tree.depths) == min(deepest, length - len(one.text) - 1)
    assert len(asked[-1].text) > length - 1 - deepest, "it was not asked near the end"


@pytest.mark.parametrize("name", SMALL)
def test_what_it_holds_for_a_request_is_given_back(name: str) -> None:
    """Where a stream is left, and where several threads decode."""
    engine, requests = engine_of("llama", small(name)), requests_of(sampling="t1")
    with engine.stream(requests[0]) as stream:
        for count in stream.steps():
            if count > 6:
                assert bool([*left_by(engine.drafters[0])]) == (name in HOLDERS), "meanwhile"
                break
    assert not [*left_by(engine.drafters[0])]
    found = at_once([(engine, [request]) for request in (*requests, *requests)])
    assert tuple(result.tokens for (result,) in found) == plain("t1") * 2
    assert not [*left_by(engine.drafters[0])]


@pytest.mark.parametrize("name", SMALL)
def test_it_learns_of_each_draft_what_the_target_chose_instead(
    name: str, asked: list[Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and of the text behind what was drafted for."""
    taught, right = list[tuple[TokenTree, tuple[int, ...]]](), Proposal.teach

    def watching(self: Proposal, calibration: Any, tokens: Sequence[int]) -> None:
        taught.append((self.tree, tuple(tokens)))
        right(self, calibration, tokens)

    monkeypatch.setattr(Proposal, "teach", watching)
    (result,) = engine_of("llama", small(name)).generate(requests_of(sampling="t1")[:1])
    steps = [one for one in asked if one.drafter == name.split("/")[0]]
    whole = [*steps[0].text[:-1], *result.tokens[result.tokens.index(steps[0].text[-1]) :]]
    drafted = [one for one in steps if one.tree.num_nodes > 1]
    for one in drafted:
        behind = tuple(whole[len(one.text) :])
        about = [
            tokens
            for tree, tokens in taught
            if tokens and tokens == behind[: len(tokens)] and _paths(one.tree) <= _paths(tree)
        ]
        assert about, f"nothing was learnt of what was drafted behind {len(one.text)} tokens"
    own = [tree for tree, _ in taught if set(tree.drafters[1:]) <= {name.split("/")[0]}]
    assert len(own) <= len(steps), "it learnt twice of a draft"


def _paths(tree: TokenTree) -> set[tuple[int, ...]]:
    return {tuple(tree.tokens[n] for n in tree.path_to(node)) for node in range(tree.num_nodes)}


@pytest.mark.parametrize("name", ["layer_skip", "compressed_kv", "cascade"])
@pytest.mark.parametrize("rule", ["coupled", "speculative"])
def test_drafts_by_the_target_end_at_its_context(
    name: str, rule: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = FAMILIES["gpt2"].build(torch.float64)  # has learned positions: none behind its context
    context = model.config.max_position_embeddings
    ids = prompt_inputs(FAMILIES["gpt2"], "text", num_text_tokens=64)["input_ids"]
    ids = ids.repeat(1, context // 64)[:, : context - 9]
    draws: dict[str, Any] = {"draw": "sample", "profile": (1,) * 12} if rule != "coupled" else {}
    target = Target(model)
    made = SMALL[name](**draws)
    assert isinstance(made, DrafterForTarget)
    engine = Engine(target, None, [made.for_target(target, None)], controller="fixed",
                    verifier=rule)  # fmt: skip
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 0}):
        result = engine.generate(
            {"input_ids": ids}, max_new_tokens=9, ignore_eos=True, seed=1, **sampling
        )
        assert len(result.tokens) == 9 and result.stats.by_drafter[name].proposed
        assert result.stats.steps < 9, "nothing was drafted where there was room"
    assert not caplog.records, caplog.text


# The rules that divide by q

OPTIONS: dict[str, Any] = {"temperature": 1.5, "top_k": 2, "max_new_tokens": 3}
RULES = {"speculative": (1,), "recursive": (2,), "block": (1, 1)}


def drawing(rule: str, name: str, profile: Sequence[int] = ()) -> Engine:
    drafter = small(name, draw="sample", profile=profile or RULES[rule])
    return engine_of("llama", drafter, verifier=rule, max_nodes=12)


@cache
def target_texts(eos: int | None = None) -> Mapping[tuple[int, ...], float]:
    """From the model's own logits."""

    def logits(ids: tuple[int, ...]) -> Tensor:
        with torch.no_grad():
            return model_of("llama", "float64")(torch.tensor([ids])).logits[0, -1]

    (request,) = requests_of()[:1]
    options = {**OPTIONS, "eos_token_id": [] if eos is None else [eos]}
    return texts_of(logits, tuple(request.prompt["input_ids"][0].tolist()), options)  # type: ignore[index,call-overload]


def enumerated(
    rule: str,
    name: str,
    patch: pytest.MonkeyPatch,
    *,
    eos: int | None = None,
    spoil: bool = False,
) -> Mapping[tuple[int, ...], float]:
    """The texts' distribution over all draws, acceptances and choices of the engine itself."""
    trace = Trace()

    def draw_level(logits: Tensor, k: int, places: Any) -> Drawing:
        q = torch.softmax(logits.double(), -1)
        drawn = [trace.draw_children(row, k).tokens for row in q]
        tokens = torch.tensor([[*own, *[0] * (k - len(own))] for own in drawn])
        there = torch.tensor([[n < len(own) for n in range(k)] for own in drawn])
        rates = q.gather(1, tokens).where(there, 0.0)
        # What is handed on in place of what was drawn from.
        return Drawing(tokens, rates, torch.softmax(logits / 2, -1) if spoil else q)

    def pick(self: Sampler, scores: Tensor) -> int:
        return trace.draw(torch.softmax(scores.double(), -1))

    for module in (branching, drawn_paths):
        patch.setattr(module, "draw_level", draw_level)
    patch.setattr(Sampler, "pick", pick)
    patch.setattr(Sampler, "uniforms", lambda self, count: trace.uniforms(count))
    engine, (request,) = drawing(rule, name), requests_of()[:1]

    def program(run: Trace) -> tuple[int, ...]:
        nonlocal trace
        trace = run
        return engine.generate(request.prompt, seed=0, eos_token_id=eos, **OPTIONS).tokens

    return distribution(program)


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("rule", RULES)
def test_texts_of_drawn_trees_have_the_targets_distribution(
    rule: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other drafter's texts may end in the middle of the likeliest one."""
    eos = None
    if DRAWING.index(name) % 2:
        eos = max(target_texts().items(), key=lambda text: text[1])[0][1]
    found, own = enumerated(rule, name, monkeypatch, eos=eos), target_texts(eos)
    assert (len(own) == 8) == (eos is None) and found.keys() == own.keys()
    error = max(abs(found[text] - own[text]) for text in own)
    assert error < 1e-6, f"largest error {error} (processors work in float32)"


@pytest.mark.parametrize("name", DRAWING)
def test_no_two_draws_of_a_text_share_their_noise(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a cascade's the nodes of a depth do: the walk comes by one of them at most, and what it
    did not come by is drawn for again."""
    drawn = list[Place]()

    def watching(logits: Tensor, k: int, places: Sequence[Place]) -> Drawing:
        drawn.extend(places)
        return draw_level(logits, k, places)

    for module in (branching, drawn_paths):
        monkeypatch.setattr(module, "draw_level", watching)
    for request in requests_of(sampling="t1")[:2]:
        drawing("recursive", name, (3, 2)).generate(request)
    assert len(drawn) > 20
    if name != "cascade":
        assert len({*drawn}) == len(drawn), "noise was used twice"


def test_that_enumeration_catches_a_q_that_was_not_drawn_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, own = enumerated("speculative", "eagle", monkeypatch, spoil=True), target_texts()
    assert max(abs(found.get(text, 0.0) - own[text]) for text in own) > 1e-3


def _levels_left(one: Asked) -> int:
    """How deep the tree may be for the text's length, of at most two levels."""
    session: Any = getattr(one.session, "middle", one.session)
    return min(session.guide.depth_below(len(one.text) - 1), 2)


@pytest.mark.parametrize("name", DRAWING)
@pytest.mark.parametrize("sampling", ["greedy", "t1"])
def test_drawn_trees_have_a_shape_that_was_set_before_and_carry_q(
    name: str, sampling: str, asked: list[Asked]
) -> None:
    """Over the target's vocabulary. Greedy requests are drafted for as ever."""
    requests = requests_of(sampling=sampling)
    for max_nodes in (1, 20):
        engine = engine_of(
            "llama",
            small(name, draw="sample", profile=(3, 2)),
            verifier="recursive",
            max_nodes=max_nodes,
        )
        results = engine.generate(requests)
        assert all(result.error is None and result.stats.is_lossless for result in results)
        again = engine.generate(requests)
        assert texts(again) == texts(results), "another text of the same seeds"
        if sampling == "greedy":
            assert texts(results) == plain("greedy")
    own = [one for one in asked if one.drafter == name.split("/")[0]]
    if sampling == "t1":  # nothing is forbidden, so nothing is missing
        shapes = {(one.budget, _levels_left(one)): one.tree.parents for one in own}
        assert all(one.tree.parents == shapes[one.budget, _levels_left(one)] for one in own)
        assert any(one.tree.num_nodes > 2 for one in own)
    for one in own:
        tree = one.tree
        tree.check_integrity(VOCAB)
        assert tree.num_nodes - 1 <= one.budget
        if sampling == "greedy" or tree.num_nodes == 1:
            continue
        assert tree.q is not None and tree.q.shape == (tree.num_nodes, VOCAB)
        sums = [float(bool(tree.children(node))) for node in range(tree.num_nodes)]
        torch.testing.assert_close(tree.q.sum(-1), torch.tensor(sums), atol=1e-5, rtol=0)
        for node in range(1, tree.num_nodes):
            assert tree.q[tree.parents[node], tree.tokens[node]] > 0
