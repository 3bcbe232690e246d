"""What a head says over its ragged cache, level by level, is what it says of each path as a whole,
given the target's own states: for chains and trees, batches, images, prompts that are known
already, texts that nobody asked about for a while."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from eagle_heads import fitted, head_config, unfitted
from heard_heads import Said, assert_heard, engine_of, listening, planes_of, requests_of
from matrix import model_of
from torch import Tensor

from mmspec.drafters.eagle import Eagle, EagleHead
from mmspec.drafters.eagle import session as eagle_session
from mmspec.requests import Request


@torch.no_grad()
def whole(
    head: EagleHead,
    model: Any,
    states: Sequence[Tensor],
    said: Said,
    requests: Sequence[Request] = (),
) -> Tensor:
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
        if head.config.block.sections:
            positions = planes_of(model, requests, said)[:, :, said.first :][:, :, :count]
        made = head(embeddings[:count].unsqueeze(0), seen, positions=positions)
        beside.append(made.features[0, -1])
    read = made.read[0, -1]
    if head.lm_head is None:
        return model.get_output_embeddings()(read)
    logits = torch.full((head.config.block.vocab_size,), -torch.inf, dtype=read.dtype)
    assert head.target_ids is not None
    logits[head.target_ids] = head.lm_head(read)
    return logits


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
    assert_heard(family, partial(whole, head), requests, results, heard)
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
    assert_heard("qwen2_5_vl", partial(whole, head), requests, results, heard)


@pytest.mark.parametrize("chunk", [3, 64])  # that a proposal reads on the way
@pytest.mark.parametrize("stores", [False, True])
def test_a_head_that_was_trained_so_counts_in_the_planes_of_its_target(
    stores: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eagle_session, "CHUNK", chunk)
    model = model_of("qwen2_5_vl", "float64")
    block = head_config(model, 3).block
    sections = (block.head_dim // 2 - 4, 2, 2)
    head = unfitted(model, 3, block=replace(block, sections=sections))
    layouts = ["image_middle", "text", "image_last"]
    requests = requests_of("qwen2_5_vl", layouts, "greedy")
    engine = engine_of("qwen2_5_vl", Eagle(head, top_k=2, min_confidence=0.01), stores=stores)
    if stores:  # the beginning of each is known
        engine.generate(requests)
    heard = listening(monkeypatch, every=2)
    results = engine.generate(requests)
    assert_heard("qwen2_5_vl", partial(whole, head, requests=requests), requests, results, heard)


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
    assert_heard("llama", partial(whole, head), [request], [result], heard)
    lengths = {len(said.text) - 1 - said.first for said in heard}
    assert max(lengths) <= 16 and min(lengths) >= 8
    assert len({said.first for said in heard}) > (1 if every > 1 else 5)


def test_several_layers_and_the_other_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no fitted head has: EAGLE-3.1's norms, two layers, its own embedding, other biases."""
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
        assert_heard("qwen3", partial(whole, head), requests, results, heard)
