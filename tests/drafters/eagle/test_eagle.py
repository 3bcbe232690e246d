"""EAGLE through the engine: what a head knows is used, and what may go wrong costs no token."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ragged
import torch
from eagle_heads import fitted, head_config, unfitted
from matrix import letters, model_of

import mmspec
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.eagle import Eagle
from mmspec.drafters.eagle import session as eagle_session
from mmspec.drafters.eagle.checkpoint import save
from mmspec.drafters.eagle.drafter import BoundEagle
from mmspec.drafters.eagle.scoring import EagleScorer
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.errors import ConfigError
from mmspec.requests import Request, Result


def engine_of(
    family: str, *drafters: Any, controller: str = "fixed", stores: bool = False, **decode: Any
) -> Engine:
    config = Config(
        decode=DecodeConfig(controller=controller, **{"max_nodes": 20, "max_rows": 3} | decode),
        cache=CacheConfig() if stores else CacheConfig(prefix_bytes=0, feature_bytes=0),
    )
    model = model_of(family, "float64")
    return mmspec.load(model, letters(), config=config, drafter=drafters)


def requests_of(
    family: str, sampling: str = "greedy", layouts: Sequence[str] = ("text",) * 3, new: int = 24
) -> list[Request]:
    return ragged.requests_of(family, sampling, layouts, lengths=(30, 25, 20), new=(new,) * 3)


def assert_plain(engine: Engine, requests: Sequence[Request], results: Sequence[Result]) -> None:
    for request, result in zip(requests, results, strict=True):
        assert result.tokens == engine.generate(request, speculate=False).tokens


def acceptance(results: Sequence[Result]) -> float:
    """Of what was drafted."""
    counts = [result.stats.by_drafter["eagle"] for result in results]
    return sum(c.accepted for c in counts) / max(sum(c.proposed for c in counts), 1)


def bound(engine: Engine) -> BoundEagle:
    (drafter,) = (d for d in engine.drafters if isinstance(d, BoundEagle))
    return drafter


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize(("family", "layout"), [("llama", "text"), ("qwen2_5_vl", "image_first")])
def test_what_a_head_learned_is_used(version: int, family: str, layout: str) -> None:
    """A chain of the likeliest token, of which there are 112."""
    accepted = []
    model = model_of(family, "float64")
    for head in (fitted(model, version), unfitted(model, version)):
        engine = engine_of(family, Eagle(head, top_k=1, max_depth=2, min_confidence=0.0))
        requests = requests_of(family, layouts=(layout,) * 3, new=40)
        results = engine.generate(requests)
        assert_plain(engine, requests, results)
        accepted.append(acceptance(results))
    assert accepted[0] > 0.04 and accepted[0] > 2 * accepted[1], f"{accepted}"


def test_a_tree_accepts_more_than_a_chain() -> None:
    lengths = []
    for top_k in (1, 4, 12):
        head = fitted(model_of("llama", "float64"), 1)
        engine = engine_of("llama", Eagle(head, top_k=top_k, min_confidence=0.0), max_nodes=40)
        results = engine.generate(requests_of("llama", "t1", new=40))
        lengths.append(sum(len(r.tokens) for r in results) / sum(r.stats.steps for r in results))
    assert lengths[0] < lengths[1] < lengths[2], f"{lengths}"


def test_a_level_is_one_forward_for_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of("llama", Eagle(fitted(model_of("llama", "float64"), 3), max_depth=3))
    right, rows, steps = EagleScorer.score, list[int](), [0]
    together = BoundEagle.propose_together

    def counted(self: Any, trees: Any, *args: Any, **options: Any) -> Any:
        rows.append(len(trees))
        return right(self, trees, *args, **options)

    def stepped(self: Any, *args: Any) -> Any:
        steps[0] += 1
        return together(self, *args)

    monkeypatch.setattr(EagleScorer, "score", counted)
    monkeypatch.setattr(BoundEagle, "propose_together", stepped)
    engine.generate(requests_of("llama"))
    assert max(rows) == 3 and len(rows) <= 3 * steps[0]


@pytest.mark.parametrize("version", [1, 3])
def test_a_head_in_another_dtype_costs_no_token(version: int) -> None:
    head = fitted(model_of("llama", "float64"), version)
    engine = engine_of("llama", Eagle(head, top_k=4, dtype="bfloat16"))
    requests = requests_of("llama", "t1")
    results = engine.generate(requests)
    assert_plain(engine, requests, results)
    assert acceptance(results) > 0
    own = bound(engine).head
    assert own.dtype == torch.bfloat16 and next(head.parameters()).dtype == torch.float64


def test_weights_that_are_the_targets_own_are_not_kept_twice() -> None:
    model = model_of("llama", "float64")
    head = unfitted(model, 1, has_embedding=True, has_head=True)
    other = engine_of("llama", Eagle(head))
    head.embed_tokens.weight.copy_(model.get_input_embeddings().weight)  # type: ignore[union-attr]
    head.lm_head.weight.copy_(model.get_output_embeddings().weight)  # type: ignore[union-attr]
    engine = engine_of("llama", Eagle(head))
    assert bound(other).head.num_weights - bound(engine).head.num_weights == 2 * 112 * 64
    assert head.embed_tokens is not None, "a user's module was changed"
    requests = requests_of("llama")
    assert_plain(engine, requests, engine.generate(requests))


def test_what_nobody_asks_about_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features wait, but not more of them than the head would read."""
    monkeypatch.setattr(
        BoundEagle,
        "propose_together",
        lambda self, sessions, texts, budget: [
            mmspec.tree.TokenTree.root(tokens[-1]) for tokens in texts
        ],
    )
    engine = engine_of("llama", Eagle(fitted(model_of("llama", "float64"), 3), window=16))
    waiting, right = list[int](), eagle_session.EagleSession.observe

    def watching(self: Any, *args: Any) -> None:
        right(self, *args)
        waiting.append(self._num_waiting)
        assert sum(part.shape[0] for part in self._features) == self._num_waiting

    monkeypatch.setattr(eagle_session.EagleSession, "observe", watching)
    engine.generate(requests_of("llama", new=60)[0])
    assert max(waiting) <= 32 and len(waiting) > 50


def test_what_was_read_is_held_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eagle_session, "CHUNK", 8)
    held, right = list[tuple[int, int]](), eagle_session.EagleSession.catch_up

    def watching(self: Any, tokens: Sequence[int]) -> None:
        right(self, tokens)
        parts = self._features
        held.append(
            (sum(p.untyped_storage().nbytes() for p in parts), sum(p.nbytes for p in parts))
        )

    monkeypatch.setattr(eagle_session.EagleSession, "catch_up", watching)
    engine = engine_of("llama", Eagle(fitted(model_of("llama", "float64"), 3)))
    engine.generate(requests_of("llama", new=4)[0])
    assert held and held[0][0] == held[0][1], "a pair that waits holds the whole prompt's features"


def test_it_drafts_beside_others() -> None:
    head = fitted(model_of("qwen2_vl", "float64"), 3)
    lookup = PromptLookup(min_match=1, min_confidence=0.0)
    engine = engine_of("qwen2_vl", lookup, Eagle(head, top_k=4))
    requests = requests_of("qwen2_vl", "warped", ["image_middle", "text", "image_last"])
    results = engine.generate(requests)
    assert_plain(engine, requests, results)
    assert sum(result.stats.by_drafter["eagle"].proposed for result in results) > 0


def test_the_controller_prices_it() -> None:
    """It reads the prompt where that pays, and is asked for no more than pays."""
    engine = engine_of("llama", Eagle(fitted(model_of("llama", "float64"), 1)), controller="auto")
    drafter, cache = bound(engine), engine.target.new_cache()
    row = engine._row(requests_of("llama")[0], 0)
    prefill = engine.target.prefill(row.prompt, cache, cache.open(64), taps=drafter.taps.layers)
    session = drafter.start(row.prompt, prefill, row.sampler.guide)
    due = session.preparation(31)
    assert due is not None and due.tokens == drafter.size_share * 30
    session.prepare([*row.tokens, 5])
    assert session.preparation(31) is None and session.least_s is None
    assert session.propose([*row.tokens, 5], 8).num_nodes > 1
    session.close()
    requests = requests_of("llama", "t1")
    assert_plain(engine, requests, engine.generate(requests))


def test_a_folder_drafts_by_its_name(tmp_path: Path) -> None:
    target = mmspec.load("tiny-vlm", drafter="none").target
    save(unfitted(target.model, 3, draft_vocab_size=40), tmp_path)
    engine = mmspec.load(
        "tiny-vlm",
        config="eagle",
        overrides={"drafter.eagle.path": str(tmp_path), "decode.controller": "fixed"},
    )
    result = engine.generate("Hello", max_new_tokens=12, temperature=0.0)
    assert result.stats.by_drafter["eagle"].proposed > 0
    plain = engine.generate("Hello", max_new_tokens=12, temperature=0.0, speculate=False)
    assert result.tokens == plain.tokens
    with pytest.raises(ConfigError, match=r"drafter\.eagle\.path='': expected a head's folder"):
        mmspec.load("tiny-vlm", drafter="eagle")


def test_below_a_view_it_is_refused() -> None:
    head = unfitted(model_of("llama", "float64"), 1)
    with pytest.raises(ConfigError, match=r"lower=eagle: it reads the target's states"):
        engine_of("llama", Cascade(Eagle(head)))
    with pytest.raises(ConfigError, match=r"drafter\.cascade\.lower='eagle': expected one of"):
        mmspec.load("tiny-vlm", drafter="cascade", overrides=["drafter.cascade.lower=eagle"])


def test_a_configs_context_is_no_bound() -> None:
    """Positions beyond what the head was trained for are no others than before: rotations are
    relative, and the window is what it sees."""
    from dataclasses import replace

    model = model_of("llama", "float64")
    block = replace(head_config(model, 1).block, max_positions=8)
    head = unfitted(model, 1, block=block)
    head.load_state_dict(fitted(model, 1).state_dict())
    texts = []
    for each in (head, fitted(model, 1)):
        engine = engine_of("llama", Eagle(each, top_k=2))
        results = engine.generate(requests_of("llama"))
        texts.append([result.stats.by_drafter["eagle"] for result in results])
    assert texts[0] == texts[1]
