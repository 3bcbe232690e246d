"""What a head says over its ragged cache, level by level, is what it says of each path as a whole,
given the target's own states: for chains and trees, batches, images, prompts that are known
already, texts that nobody asked about for a while."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import ragged
import torch
from eagle_heads import fitted, unfitted
from listener import native
from matrix import model_of
from torch import Tensor

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.eagle import Eagle, EagleHead
from mmspec.drafters.eagle import session as eagle_session
from mmspec.drafters.eagle.drafter import BoundEagle
from mmspec.drafters.growing import trees
from mmspec.drafters.growing.growth import Growth
from mmspec.drafters.growing.together import grow as grow_together
from mmspec.requests import Request
from mmspec.tree import TokenTree


@dataclass
class Said:
    """What a head said at one node: `text` up to node 0, then the path down to the node."""

    text: tuple[int, ...]
    path: tuple[int, ...]  # below node 0
    first: int  # index of the first feature that its row holds
    logits: Tensor


def listening(patch: pytest.MonkeyPatch, *, every: int = 1) -> list[Said]:
    """Notes all that is scored; the drafter is asked at each `every`th step alone."""
    heard: list[Said] = []
    calls, texts = [0], list[tuple[tuple[int, ...], int]]()
    right = BoundEagle.propose_together

    def together(self: Any, sessions: Any, given: Any, budget: int) -> list[TokenTree]:
        calls[0] += 1
        if calls[0] % every:
            return [TokenTree.root(tokens[-1]) for tokens in given]
        texts[:] = [
            (tuple(tokens), session) for session, tokens in zip(sessions, given, strict=True)
        ]
        return right(self, sessions, given, budget)

    def grow(scorer: Any, cache: Any, growths: Sequence[Growth], *, cost: Any) -> None:
        rows = {
            growth.placement.row: (text, session._first)
            for growth, (text, session) in zip(growths, texts, strict=True)
        }
        score = scorer.score

        def noted(trees: Any, cache: Any, placements: Any, **options: Any) -> Any:
            scores = score(trees, cache, placements, **options)
            for index, (tree, place, old, own) in enumerate(
                zip(trees, placements, options["written"], scores, strict=True)
            ):
                text, first = rows[place.row]
                if not old:
                    roots[place.row], tokens[place.row] = tree.num_nodes - 1, []
                # Where no token can change a chain they are known on the device alone.
                given = options.get("ids")
                new = tree.tokens[old:] if given is None else given[index].tolist()
                tokens[place.row] += new
                leaves = [n for n in range(old, tree.num_nodes) if n not in tree.parents]
                for node, logits in zip(leaves, own.logits, strict=True):
                    steps = [n for n in tree.path_to(node) if n > roots[place.row]]
                    path = tuple(tokens[place.row][n] for n in steps)
                    heard.append(Said(text, path, first, logits))
            return scores

        roots: dict[int, int] = {}  # row -> its node 0 among what is written
        tokens: dict[int, list[int]] = {}
        scorer.score = noted
        grow_together(scorer, cache, growths, cost=cost)

    patch.setattr(BoundEagle, "propose_together", together)
    patch.setattr(trees, "grow", grow)
    return heard


@torch.no_grad()
def whole(model: Any, head: EagleHead, states: Sequence[Tensor], said: Said) -> Tensor:
    """(vocab,) of the same by whole sequences, from the target's states of text and path."""
    taps = head.config.taps(len(states) - 1)
    known = len(said.text) - 1
    features = torch.cat([states[tap][said.first : known] for tap in taps], dim=-1)
    beside = list(head.project(features))
    ids = torch.tensor([*said.text[said.first + 1 :], *said.path])
    embeddings = model.get_input_embeddings().weight[ids]
    if head.embed_tokens is not None:
        embeddings = head.embed_tokens(ids)
    for count in range(known - said.first, len(ids) + 1):
        seen = torch.stack(beside[:count]).unsqueeze(0)
        positions = said.first + torch.arange(count).unsqueeze(0)
        made = head(embeddings[:count].unsqueeze(0), seen, positions=positions)
        beside.append(made.features[0, -1])
    read = made.read[0, -1]
    if head.lm_head is None:
        return model.get_output_embeddings()(read)
    logits = torch.full((head.config.block.vocab_size,), -torch.inf, dtype=read.dtype)
    assert head.target_ids is not None
    logits[head.target_ids] = head.lm_head(read)
    return logits


@torch.no_grad()
def requests_of(family: str, layouts: Sequence[str], sampling: str) -> list[Request]:
    return ragged.requests_of(family, sampling, layouts, lengths=(30, 23, 16), new=(16, 13, 10))


def engine_of(
    family: str, drafter: Eagle, *, stores: bool = False, chunk: int | None = None
) -> Any:
    config = Config(
        decode=DecodeConfig(controller="fixed", max_nodes=14, max_rows=3, prefill_chunk=chunk),
        cache=CacheConfig() if stores else CacheConfig(prefix_bytes=0, feature_bytes=0),
    )
    return mmspec.load(model_of(family, "float64"), config=config, drafter=[drafter])


def assert_heard(
    family: str, head: EagleHead, requests: Sequence[Request], results: Any, heard: Sequence[Said]
) -> None:
    prompts = [tuple(request.prompt["input_ids"][0].tolist()) for request in requests]  # type: ignore[call-overload,index]
    texts = [(*ids, *result.tokens) for ids, result in zip(prompts, results, strict=True)]
    states = [
        native(family, request, result.tokens)
        for request, result in zip(requests, results, strict=True)
    ]
    assert len(heard) > 8
    for said in heard:
        row = next(n for n, text in enumerate(texts) if text[: len(said.text)] == said.text)
        expected = whole(model_of(family, "float64"), head, states[row], said)
        torch.testing.assert_close(said.logits, expected, rtol=1e-8, atol=1e-8)


CELLS = [
    # family, layouts, version, how its trees grow, asked at each ... step
    ("llama", ["text"] * 3, 1, {"top_k": 1, "min_confidence": 0.0}, 1),  # set chains
    ("llama", ["text"] * 3, 3, {"top_k": 3}, 1),
    ("llama", ["text"] * 3, 1, {"top_k": 3}, 4),
    ("gemma3_text", ["text"] * 2, 1, {"top_k": 2}, 3),
    ("qwen2_5_vl", ["image_middle", "text", "image_last"], 3, {"top_k": 3}, 1),
    ("llava", ["image_first"], 1, {"top_k": 3}, 2),
]


@pytest.mark.parametrize(("family", "layouts", "version", "options", "every"), CELLS)
def test_each_node_is_scored_as_its_whole_text(
    family: str,
    layouts: list[str],
    version: int,
    options: dict[str, Any],
    every: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eagle_session, "CHUNK", 3)  # so that chunks are read, too
    head = fitted(model_of(family, "float64"), version)
    heard = listening(monkeypatch, every=every)
    engine = engine_of(family, Eagle(head, **{"max_depth": 4, "min_confidence": 0.01, **options}))
    requests = requests_of(family, layouts, "t1")
    results = engine.generate(requests)
    assert_heard(family, head, requests, results, heard)
    assert max(len(said.path) for said in heard) == 3
    assert all(said.first == 0 for said in heard)


@pytest.mark.parametrize("version", [1, 3])
def test_a_known_beginning_is_left_out(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time the prompt's keys are known and its states are not."""
    head = fitted(model_of("qwen2_5_vl", "float64"), version)
    engine = engine_of("qwen2_5_vl", Eagle(head, top_k=2, max_depth=3), stores=True, chunk=9)
    requests = requests_of("qwen2_5_vl", ["image_middle", "text"], "greedy")
    engine.generate(requests)
    heard = listening(monkeypatch)
    results = engine.generate(requests)
    assert all(result.stats.reused_tokens > 8 for result in results)
    assert {said.first for said in heard} == {result.stats.reused_tokens for result in results}
    assert_heard("qwen2_5_vl", head, requests, results, heard)


@pytest.mark.parametrize("every", [1, 34])
def test_beyond_its_window_the_oldest_tokens_leave(
    every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of one layer: a key depends on its own token and feature alone, so that what stays is
    what a fresh reading from there on would say."""
    head = fitted(model_of("llama", "float64"), 3)
    monkeypatch.setattr(eagle_session, "CHUNK", 3)
    heard = listening(monkeypatch, every=every)
    engine = engine_of("llama", Eagle(head, top_k=2, max_depth=3, window=16))
    (request, *_) = requests_of("llama", ["text"], "t1")
    result = engine.generate(request, max_new_tokens=100)
    assert_heard("llama", head, [request], [result], heard)
    lengths = {len(said.text) - 1 - said.first for said in heard}
    assert max(lengths) <= 16 and min(lengths) >= 8
    assert len({said.first for said in heard}) > (1 if every > 1 else 5)


def test_several_layers_and_the_other_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no fitted head has: EAGLE-3.1's norms, two layers, its own embedding, other biases."""
    from dataclasses import replace

    from eagle_heads import head_config

    model = model_of("qwen3", "float64")
    block = replace(
        head_config(model, 3).block, num_layers=2, num_kv_heads=2, qkv_bias=True, qk_norm=True
    )
    norms = {"fc_norm": True, "norm_output": True, "norm_before_residual": True}
    for version, options in (
        (3, {**norms, "has_embedding": True}),
        (3, {"norm_before_fc": True}),
        (1, {"first_norm": True, "has_outer_norms": True, "fc_bias": True}),
    ):
        head = unfitted(model, version, block=block, **options)  # type: ignore[arg-type]
        with pytest.MonkeyPatch.context() as patch:
            heard = listening(patch)
            engine = engine_of("qwen3", Eagle(head, top_k=2, max_depth=3, min_confidence=0.01))
            requests = requests_of("qwen3", ["text", "text"], "t1")
            results = engine.generate(requests)
        assert_heard("qwen3", head, requests, results, heard)
