"""QueryLog: the newest committed tokens' queries, whatever the forwards that they came from."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import model_of
from torch import Tensor

from mmspec.engine import Engine
from mmspec.inputs import from_inputs
from mmspec.kv import QueryLog
from mmspec.target import Target
from mmspec.target.attached import Attention
from mmspec.tree import TokenTree


def wrote(log: QueryLog, row: int, marks: Sequence[int], *, is_prompt: bool = False) -> None:
    """One forward of one layer, one head, head_dim 1."""
    tap = log.tap([row], [len(marks)], is_prompt=is_prompt)
    tap.take(0, torch.tensor(marks, dtype=torch.float64).view(1, 1, -1, 1), 1.0)


def held(log: QueryLog, row: int) -> list[int] | None:
    read = log.read(row, 0)
    return None if read is None else read.states.flatten().int().tolist()


def test_it_keeps_the_newest_committed_tokens_and_no_other() -> None:
    log = QueryLog(4)
    wrote(log, 0, range(10))
    assert held(log, 0) is None, "nothing is committed yet"
    log.commit({0: range(10)})
    assert held(log, 0) == [6, 7, 8, 9]
    wrote(log, 0, [10, 11, 12, 13])
    log.commit({0: [0, 2]})
    assert held(log, 0) == [8, 9, 10, 12]
    wrote(log, 0, [13])  # a forward that was given up
    wrote(log, 0, [14])
    log.commit({0: [0]})
    assert held(log, 0) == [9, 10, 12, 14]
    wrote(log, 0, range(15, 19))
    log.commit({0: range(4)})
    for mark in range(19, 40):
        wrote(log, 0, [mark])
        log.commit({0: [0]})
        assert held(log, 0) == list(range(mark - 3, mark + 1))
        assert log.num_bytes <= log.most_bytes(0) == 6 * 8, "older ones are not kept for long"


def test_of_a_tree_with_more_nodes_than_are_kept_the_path_is() -> None:
    """Whichever nodes it takes: the newest ones of a tree are other drafts' mostly."""
    log = QueryLog(3)
    wrote(log, 0, range(5))
    log.commit({0: range(5)})
    wrote(log, 0, range(10, 30))
    log.commit({0: [0, 1]})
    assert held(log, 0) == [4, 10, 11]


def test_of_a_prompt_none_but_the_newest_are_copied() -> None:
    log = QueryLog(3)
    wrote(log, 0, range(1000), is_prompt=True)
    assert log.num_bytes == 3 * 8
    log.commit({0: range(1000)})
    assert held(log, 0) == [997, 998, 999]


def test_a_forward_that_was_not_seen_leaves_no_gap_unnoticed() -> None:
    log = QueryLog(4)
    wrote(log, 0, range(5))
    log.commit({0: range(5), 1: range(3)})
    assert held(log, 0) == [1, 2, 3, 4] and held(log, 1) is None
    log.commit({0: [0]})  # nobody told its queries
    assert held(log, 0) is None
    wrote(log, 0, [7])
    log.commit({0: [0]})
    assert held(log, 0) == [7]
    log.forget(0)
    assert held(log, 0) is None and log.num_bytes == 0


@pytest.mark.parametrize(
    ("family", "layout"),
    [("llama", "text"), ("gemma3_text", "text"), ("llava", "image_middle"), ("qwen2_vl", "video")],
)
@pytest.mark.parametrize("attention", ["tree", "model"])
def test_queries_are_those_of_one_forward_over_the_whole_text(
    family: str, layout: Any, attention: Attention
) -> None:
    """Prefill, then trees of which a side branch is accepted, two rows together; the reference is
    a prefill of all that was committed."""
    model = model_of(family, "float64")
    target = Target(model, attention=attention)
    inputs = [prompt_inputs(FAMILIES[family], layout, seed=seed) for seed in (0, 1)]
    prompts = [from_inputs(each, model.config) for each in inputs]
    cache = target.new_cache(watched_queries=9)
    rows = [cache.open(4) for _ in prompts]
    placements = [
        target.prefill(prompt, cache, row).placement
        for prompt, row in zip(prompts, rows, strict=True)
    ]
    #   10 -> 11, 12 -> 13: the path 0 2 3 stays
    tree = TokenTree((10, 11, 12, 13), (-1, 0, 0, 2), (1.0,) * 4, ("",) * 4)
    for _ in range(2):
        target.score([tree, TokenTree.root(10)], cache, placements)
        cache.commit({rows[0]: [0, 2, 3], rows[1]: [0]})
    ends = ([10, 12, 13] * 2, [10, 10])
    for prompt, row, own, end in zip(prompts, rows, inputs, ends, strict=True):
        reference = target.new_cache(watched_queries=9)
        whole = reference.open(4)
        if layout == "text":
            ids = torch.cat([own["input_ids"][0], torch.tensor(end)])
            target.prefill(from_inputs({"input_ids": ids[None]}, model.config), reference, whole)
        else:  # after media: plain steps
            place = target.prefill(prompt, reference, whole).placement
            for token in end:
                target.score([TokenTree.root(token)], reference, [place])
                reference.commit({whole: [0]})
        assert cache.queries is not None and reference.queries is not None
        for layer in range(model.config.get_text_config().num_hidden_layers):
            logged, expected = cache.queries.read(row, layer), reference.queries.read(whole, layer)
            assert logged is not None and expected is not None
            assert logged.states.shape[0] == 9
            torch.testing.assert_close(logged.states, expected.states, rtol=1e-9, atol=1e-9)
            assert logged.scaling == expected.scaling


def test_nobody_is_told_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def take(self: object, layer: int, query: Tensor, scaling: float) -> None:
        raise AssertionError("queries were recorded")

    monkeypatch.setattr("mmspec.kv.queries.QueryTap.take", take)
    engine = Engine(Target(model_of("llama", "float64"), attention="tree"), None)
    result = engine.generate(prompt_inputs(FAMILIES["llama"], "text"), max_new_tokens=4)
    assert len(result.tokens) == 4
