"""Overlap: a step that is begun before the tokens ahead of it are read says what it would say
otherwise, and the device has it before the host waits."""

from collections.abc import Sequence
from itertools import count
from types import SimpleNamespace
from typing import Any

import matrix
import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import Cell, letters, run_cell

import mmspec
from mmspec.config import Config, DecodeConfig
from mmspec.controller import CONTROLLERS, FixedStep, Pace
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.overlap import Overlap
from mmspec.requests import Request
from mmspec.target import Target
from mmspec.tree import TokenTree


class Wavering:
    """A controller that asks now and then, and lets drafts wait."""

    def __init__(self) -> None:
        self._steps = count()

    def step(self, paces: Sequence[Pace], context: int) -> "WaveringStep":
        return WaveringStep(paces, next(self._steps))


class WaveringStep(FixedStep):
    lets_drafts_wait = True

    def __init__(self, paces: Sequence[Pace], number: int) -> None:
        super().__init__(paces)
        self._number = number

    def asks(
        self, row: int, drafter: str, tree: TokenTree, *, least_s: float | None = None
    ) -> bool:
        return self._number % 7 in (2, 5, 6)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each step had that was begun early."""
    sizes, begin = list[int](), Overlap._begin

    def counted(self: Overlap, *args: Any) -> None:
        begin(self, *args)
        if self._begun is not None:
            sizes.append(len(self._begun.rows))

    monkeypatch.setattr(Overlap, "_begin", counted)
    return sizes


# family -> (drafter, sampling, layout, whether the requests come one after the other)
CELLS = {
    "llama": ("prompt_lookup", "warped", "text", True),
    "qwen2_5_vl": ("retrieval_generated", "t1", "image_middle", False),
    "gemma3": ("draft_same", "greedy", "image_last", True),
    "qwen3": ("compressed_snapkv", "t1", "text", False),
    "mllama": ("prompt_lookup+lookahead", "greedy", "image_first", True),
    "lfm2": ("adversary", "t1", "text", False),
    "qwen3_5": ("layer_skip", "greedy", "image_middle", True),
    "mistral_sliding": ("eagle3", "t1", "text", False),
    "qwen2": ("medusa", "warped", "text", True),
    "llava": ("glide", "greedy", "image_first", False),
}


@pytest.mark.parametrize("family", CELLS)
def test_the_texts_are_those_of_plain_decoding(
    family: str, begun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where drafters, which may use the target's own KV, are asked in between."""
    drafter, sampling, layout, joins = CELLS[family]
    cell = Cell(family, drafter, sampling, 3, layout, reuse="chunks_and_prefixes")
    for place in matrix._places(cell):  # without any of this
        matrix._plain(family, cell.dtype, sampling, *place)
    monkeypatch.setitem(CONTROLLERS, "fixed", Wavering)
    monkeypatch.setattr(Engine, "_overlaps", True)
    outcome = run_cell(cell, choosing="device", joins=joins)
    assert not outcome.mismatches
    assert len(begun) > 3


def test_bitwise_mode_keeps_its_bits(begun: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("llama", "prompt_lookup", "t1", 3, "text", dtype="float32", exactness="bitwise")
    for place in matrix._places(cell):
        matrix._plain("llama", "float32", "t1", *place, "bitwise", 20, "none")
    monkeypatch.setitem(CONTROLLERS, "fixed", Wavering)
    monkeypatch.setattr(Engine, "_overlaps", True)
    assert not run_cell(cell, choosing="device").mismatches
    assert begun


def _engine(overlap: str, *, drafters: Sequence[Any] = (), eos: int | None = None) -> Engine:
    model = FAMILIES["llama"].build(torch.float64)
    model.generation_config.eos_token_id = eos
    config = Config(decode=DecodeConfig(max_rows=3, choosing="device", overlap=overlap))
    return mmspec.load(model, letters(), config=config, drafter=drafters)


def _request(length: int, **options: Any) -> Request:
    inputs = prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=length, seed=length)
    return Request(inputs, **{"max_new_tokens": 20, "seed": 3} | options)


def test_a_row_that_ends_drops_what_was_begun_for_it(begun: list[int]) -> None:
    """And the store of prompts gets nothing of that."""
    requests = [_request(length) for length in (30, 17, 23, 9)]
    texts = [result.tokens for result in _engine("never").generate(requests)]
    eos = texts[1][6]
    expected = [r.tokens for r in _engine("never", eos=eos).generate(requests)]
    assert any(len(tokens) < 20 for tokens in expected)
    engine = _engine("always", eos=eos)
    for _ in range(2):  # the second time upon what the first one has left
        assert [result.tokens for result in engine.generate(requests)] == expected
    reused = [result.stats.reused_tokens for result in engine.generate(requests)]
    assert min(reused) > 0
    assert set(begun) >= {2, 3}


def test_no_step_is_begun_for_a_row_without_room(
    begun: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one that was begun scored again."""
    engine, scored, score = _engine("always"), list[int](), Target.score

    def counting(self: Target, trees: Sequence[TokenTree], *args: Any, **options: Any) -> Any:
        scored.append(len(trees))
        return score(self, trees, *args, **options)

    monkeypatch.setattr(Target, "score", counting)
    result = engine.generate(_request(12, max_new_tokens=5))
    assert result.stats.steps == len(scored) == 4
    assert len(begun) == 3  # the first token is the prompt's, the first step has none ahead


def test_where_the_host_chooses_no_step_is_begun(begun: list[int]) -> None:
    def unknown(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores

    expected = _engine("never").generate(_request(12)).tokens
    assert _engine("always").generate(_request(12, logits_processors=(unknown,))).tokens == expected
    assert not begun


def test_pinned_drafts_wait_for_nothing(begun: list[int]) -> None:
    engine = _engine("always", drafters=[PromptLookup(min_match=1, min_confidence=0.0)])
    engine.generate(_request(30, speculate=True))
    assert not begun
    engine.generate(_request(30, speculate=False))
    assert begun


def test_a_row_that_fails_leaves_the_store_what_it_leaves_without(begun: list[int]) -> None:
    """What a step said of it that failed is not kept, though the next one has begun upon it."""

    def kept(overlap: str) -> tuple[int, Sequence[int]]:
        calls = count(1)

        def fails(ids: torch.Tensor, scores: object) -> bool:
            if next(calls) == 5:
                raise ValueError("no more")
            return False

        engine = _engine(overlap)
        failed, other = engine.generate([_request(12, stopping_criteria=[fails]), _request(17)])
        assert failed.error is not None and other.error is None
        return engine.cache_info().prefixes.num_tokens, failed.tokens

    assert kept("always") == kept("never")
    assert begun


@pytest.mark.parametrize("is_on", [True, False])
def test_buffers_are_given_back_once_nothing_writes_to_them(
    is_on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what was begun was dropped, or failed on its way, and from another stream."""
    told: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append("synchronize"))
    target: Any = SimpleNamespace(device=torch.device("cuda"))
    cache: Any = SimpleNamespace(release=lambda: told.append("release"))
    Overlap(target, cache, is_on=is_on).close()
    assert told == ["synchronize", "release"][not is_on :]
