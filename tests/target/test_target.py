"""The target: a scored tree says what the model says of each path by itself."""

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from families import FAMILIES, prompt_inputs
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.kv import KVCache
from mmspec.state import Placement, Prefill, Prompt
from mmspec.target import Target
from mmspec.target.probe import probe
from mmspec.tree import TokenTree

TOLERANCE = 1e-9  # float64, against logits of a spread of about 1
NAMES = pytest.mark.parametrize("name", ["llama", "gemma3_text"])

#       0:40
#      /    \
#   1:41    2:42
#   /   \
# 3:43  4:44
FIVE = TokenTree((40, 41, 42, 43, 44), (-1, 0, 0, 1, 1), (1.0, 0.9, 0.5, 0.9, 0.5), ("", *"aaaa"))
# A chain with one side branch, deep enough to leave gemma3's window of 8.
DEEP = TokenTree(
    (50, 51, 52, 53, 54, 55, 56, 57, 58, 59),
    (-1, 0, 1, 2, 2, 3, 5, 6, 7, 7),
    (1.0,) * 10,
    ("", *"aaaaaaaaa"),
)


@cache
def _model(name: str) -> PreTrainedModel:
    return FAMILIES[name].build(torch.float64)


@cache
def _target(name: str) -> Target:
    return probe(_model(name))[0]


def prompt_of(name: str, num_tokens: int, seed: int = 0) -> Prompt:
    inputs = prompt_inputs(FAMILIES[name], "text", num_text_tokens=num_tokens, seed=seed)
    return Prompt(inputs["input_ids"][0])


def native(name: str, tokens: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The last token's logits (vocab,) and hidden states, a tensor (hidden,) a layer, of one full
    forward without any cache."""
    with torch.no_grad():
        output = _model(name)(
            input_ids=torch.tensor([list(tokens)]), use_cache=False, output_hidden_states=True
        )
    return output.logits[0, -1], tuple(state[0, -1] for state in output.hidden_states)


def prefilled(name: str, prompts: Sequence[Prompt]) -> tuple[KVCache, list[Prefill]]:
    cache = _target(name).new_cache()
    prefills = [
        _target(name).prefill(prompt, cache, cache.open(prompt.num_tokens + 2))
        for prompt in prompts
    ]
    return cache, prefills


def assert_equal(got: Tensor, expected: Tensor, what: str) -> None:
    error = float((got - expected).abs().max())
    assert error < TOLERANCE, f"{what}: off by {error:.2g}"


def assert_scored(
    name: str,
    cache: KVCache,
    trees: Sequence[TokenTree],
    placements: Sequence[Placement],
    texts: Sequence[Sequence[int]],
) -> None:
    """Every node's logits equal a full forward over its row's text and the path to it."""
    scores = _target(name).score(trees, cache, placements)
    for row, (tree, text, score) in enumerate(zip(trees, texts, scores, strict=True)):
        assert score.logits.shape == (tree.num_nodes, _target(name).vocab_size)
        for node in range(tree.num_nodes):
            path = [tree.tokens[n] for n in tree.path_to(node)]
            expected, _ = native(name, [*text, *path])
            assert_equal(score.logits[node], expected, f"row {row}, node path {tree.path_to(node)}")


# LAW


def test_prefill_commits_the_prompt_and_scoring_nothing() -> None:
    cache, (prefill,) = prefilled("llama", [prompt_of("llama", 12)])
    row = prefill.placement.row
    assert cache.length(row) == 12
    _target("llama").score([FIVE], cache, [prefill.placement])
    assert cache.length(row) == 12
    cache.commit({row: (0, 1, 4)})
    assert cache.length(row) == 15
    cache.check_integrity()


def test_a_row_that_holds_something_is_not_prefilled_again() -> None:
    cache, (prefill,) = prefilled("llama", [prompt_of("llama", 12)])
    with pytest.raises(AssertionError, match="already holds 12 tokens"):
        _target("llama").prefill(prompt_of("llama", 12), cache, prefill.placement.row)


def test_scoring_twice_says_the_same() -> None:
    cache, (prefill,) = prefilled("llama", [prompt_of("llama", 12)])
    first, second = (
        _target("llama").score([FIVE], cache, [prefill.placement])[0].logits for _ in range(2)
    )
    assert torch.equal(first, second)


def test_the_model_is_left_as_it_was() -> None:
    model = FAMILIES["llama"].build(torch.float64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = set(vars(model)) | set(vars(model.model)) | set(vars(model.config))
    target = Target(model)
    cache = target.new_cache()
    placement = target.prefill(prompt_of("llama", 8), cache, cache.open(8)).placement
    target.score([FIVE], cache, [placement])
    assert attributes == set(vars(model)) | set(vars(model.model)) | set(vars(model.config))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_the_target_says_of_its_model() -> None:
    target = _target("llama")
    assert (target.vocab_size, target.num_embeddings, target.max_positions) == (112, 112, 8192)
    assert (target.dtype, target.device) == (torch.float64, torch.device("cpu"))


# ORACLE


@NAMES
def test_prefill_equals_a_full_forward(name: str) -> None:
    prompts = [prompt_of(name, 24), prompt_of(name, 5, seed=1)]
    _, prefills = prefilled(name, prompts)
    for prompt, prefill in zip(prompts, prefills, strict=True):
        expected, _ = native(name, prompt.token_ids.tolist())
        assert_equal(prefill.logits, expected, f"prompt of {prompt.num_tokens} tokens")


@NAMES
@pytest.mark.parametrize("tree", [TokenTree.root(40), FIVE, DEEP], ids=["root", "five", "deep"])
def test_a_scored_tree_equals_recomputing_each_path(name: str, tree: TokenTree) -> None:
    prompt = prompt_of(name, 24)
    cache, (prefill,) = prefilled(name, [prompt])
    assert_scored(name, cache, [tree], [prefill.placement], [prompt.token_ids.tolist()])


@NAMES
def test_ragged_rows_with_their_own_trees_equal_recomputing(name: str) -> None:
    prompts = [prompt_of(name, 24), prompt_of(name, 3, seed=1), prompt_of(name, 11, seed=2)]
    cache, prefills = prefilled(name, prompts)
    placements = [prefill.placement for prefill in prefills]
    texts = [prompt.token_ids.tolist() for prompt in prompts]
    trees = [FIVE, DEEP, TokenTree.root(60)]
    assert_scored(name, cache, trees, placements, texts)


@NAMES
def test_steps_after_a_commit_equal_recomputing(name: str) -> None:
    """Paths that skip nodes, one row that rolls back, rows in another order, one that ended."""
    prompts = [prompt_of(name, 9), prompt_of(name, 14, seed=1), prompt_of(name, 4, seed=2)]
    cache, prefills = prefilled(name, prompts)
    placements = [prefill.placement for prefill in prefills]
    texts = [prompt.token_ids.tolist() for prompt in prompts]
    trees = [FIVE, DEEP, FIVE]
    assert_scored(name, cache, trees, placements, texts)
    accepted = [(0, 1, 4), (0, 1, 2, 4), ()]
    cache.commit(
        {place.row: path for place, path in zip(placements, accepted, strict=True) if path}
    )
    for text, tree, path in zip(texts, trees, accepted, strict=True):
        text += [tree.tokens[node] for node in path]
    for order in ([2, 0, 1], [1, 2]):
        assert_scored(
            name,
            cache,
            [DEEP if row == 2 else FIVE for row in order],
            [placements[row] for row in order],
            [texts[row] for row in order],
        )
        cache.commit({placements[row].row: (0, 1) for row in order})
        for row in order:
            texts[row] += (DEEP if row == 2 else FIVE).tokens[:2]


@NAMES
def test_taps_are_the_models_hidden_states(name: str) -> None:
    target, prompts = _target(name), [prompt_of(name, 10), prompt_of(name, 4, seed=1)]
    num_layers = _model(name).config.get_text_config().num_hidden_layers
    taps = (0, 1, num_layers)
    cache = target.new_cache()
    prefills = [target.prefill(prompt, cache, cache.open(20), taps=taps) for prompt in prompts]
    trees = [TokenTree.root(60), FIVE]
    scores = target.score(trees, cache, [prefill.placement for prefill in prefills], taps=taps)
    for prompt, prefill, tree, score in zip(prompts, prefills, trees, scores, strict=True):
        text = prompt.token_ids.tolist()
        assert prefill.hidden.keys() == score.hidden.keys() == set(taps)
        for tap in taps:
            assert prefill.hidden[tap].shape == (len(text), 64)
            assert score.hidden[tap].shape == (tree.num_nodes, 64)
            for index in range(len(text)):
                expected = native(name, text[: index + 1])[1][tap]
                assert_equal(prefill.hidden[tap][index], expected, f"tap {tap}, token {index}")
            for node in range(tree.num_nodes):
                path = [tree.tokens[n] for n in tree.path_to(node)]
                expected = native(name, text + path)[1][tap]
                assert_equal(score.hidden[tap][node], expected, f"tap {tap}, node {node}")


def test_without_taps_nothing_is_kept() -> None:
    cache, (prefill,) = prefilled("llama", [prompt_of("llama", 4)])
    (score,) = _target("llama").score([FIVE], cache, [prefill.placement])
    assert prefill.hidden == score.hidden == {}
