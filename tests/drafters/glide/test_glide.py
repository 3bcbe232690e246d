"""glide in the engine: what it drafts from, what it reads, what it refuses."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ragged
import torch
from draft_models import letters
from families import FAMILIES, prompt_inputs
from glide_heads import drawn, fitted, target_of
from matrix import Cell, run_cell
from safetensors.torch import load_file, save_file

import mmspec
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.glide import BoundGlide, Glide, GlideHead, GlideHeadConfig, load, save
from mmspec.drafters.glide.scoring import GlideScorer
from mmspec.drafters.glide.session import GlideSession
from mmspec.engine import Engine
from mmspec.errors import ConfigError, ModelError
from mmspec.inputs import from_inputs
from mmspec.kv import KVCache
from mmspec.requests import Request, Result
from mmspec.state import Prefill, Prompt
from mmspec.target import Target
from mmspec.tree import TokenTree

CHAIN: dict[str, Any] = {"cape_thresholds": (), "cape_widths": (2,), "min_confidence": 0.0}


def engine_of(head: GlideHead, *, verifier: str = "coupled", **options: Any) -> Engine:
    drafter = Glide(head, **CHAIN | options)
    return ragged.engine_of("llama", drafter, max_nodes=12, verifier=verifier)


def known(count: int = 3, **sampling: Any) -> list[Request]:
    """Prompts whose greedy answers the fitted head knows."""
    _, prompts = fitted("llama")
    return [
        Request(
            {"input_ids": torch.tensor([ids])}, max_new_tokens=30 - 4 * row, seed=row, **sampling
        )
        for row, ids in enumerate(prompts[:count])
    ]


def tokens_per_step(results: Sequence[Result]) -> float:
    return sum(result.stats.tokens_per_step for result in results) / len(results)


def test_a_fitted_head_is_accepted_and_an_unfitted_one_is_not() -> None:
    requests = known(temperature=0.0)
    said = engine_of(fitted("llama")[0]).generate(requests)
    guessed = engine_of(drawn(target_of("llama"))).generate(requests)
    plain = engine_of(fitted("llama")[0]).generate(requests, speculate=False)
    assert [r.tokens for r in said] == [r.tokens for r in guessed] == [r.tokens for r in plain]
    assert tokens_per_step(said) > 3.0, "it was fitted to nearly all of this, by whole sequences"
    assert tokens_per_step(guessed) < 1.5


@pytest.mark.parametrize(
    "cell",
    [
        Cell("llama", "glide", "t1", 3, "text", reuse="chunks_and_prefixes"),
        Cell("qwen2_5_vl", "glide", "greedy", 1, "image_middle", reuse="chunks"),
        Cell("qwen3_vl", "glide", "warped", 3, "image_last", reuse="chunks_and_prefixes"),
        Cell("gemma3_text", "glide", "t1", 1, "text", controller="auto", reuse="chunks"),
    ],
    ids=str,
)
def test_prompts_in_chunks_and_known_ones_change_no_token(cell: Cell) -> None:
    outcome = run_cell(cell)
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    assert outcome.accepted > 0 or cell.controller == "auto"
    assert (outcome.reused > 0) == cell.reuse.endswith("prefixes")


# Sessions by hand


class Decoding:
    """Plain decoding of one prompt, beside which sessions draft."""

    def __init__(self, target: Target, prompt: Prompt, cache: KVCache | None = None) -> None:
        self.target, self.prompt = target, prompt
        self.cache = target.new_cache() if cache is None else cache
        self.row = self.cache.open(4)
        self.prefill: Prefill = target.prefill(prompt, self.cache, self.row)
        self.tokens = [*prompt.token_ids.tolist(), int(self.prefill.logits.argmax())]

    def session(self, drafter: BoundGlide) -> GlideSession:
        guide = DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=self.prompt.num_tokens)
        return drafter.start(self.prompt, self.prefill, guide)

    def go_on(self, count: int = 1) -> None:
        for _ in range(count):
            tree = TokenTree.root(self.tokens[-1])
            (scores,) = self.target.score([tree], self.cache, [self.prefill.placement])
            self.cache.commit({self.row: [0]})
            self.tokens.append(int(scores.logits[0].argmax()))


def text_prompt(length: int, *, seed: int = 0) -> Prompt:
    draw = torch.Generator().manual_seed(seed)
    return Prompt(torch.randint(3, 90, (length,), generator=draw))


def bound(head: GlideHead, target: Target | None = None, **options: Any) -> BoundGlide:
    return Glide(head, **CHAIN | options).for_target(target or target_of("llama"), None)


def test_who_is_asked_seldom_drafts_what_who_is_asked_always_does() -> None:
    drafter, decoding = bound(fitted("llama")[0]), Decoding(target_of("llama"), text_prompt(50))
    always, seldom = decoding.session(drafter), decoding.session(drafter)
    for step in range(40):
        tree = always.propose(decoding.tokens, 9)
        if step in (0, 3, 39):  # of the last 36 tokens it knows nothing
            assert seldom.propose(decoding.tokens, 9) == tree
        decoding.go_on()
    assert seldom.num_cached == 50 + 39 and len(seldom.missing) == 1, "it has read them"
    for session in (always, seldom):
        session.close()
    assert not drafter.cache.rows and drafter.cache.num_bytes == 0


def test_preparing_reads_what_a_proposal_would_have_to() -> None:
    drafter, decoding = bound(fitted("llama")[0]), Decoding(target_of("llama"), text_prompt(90))
    session = decoding.session(drafter)
    due = session.preparation(len(decoding.tokens))
    assert due is not None and 0 < due.tokens < len(decoding.tokens)
    session.prepare(decoding.tokens)
    assert session.preparation(len(decoding.tokens)) is None
    assert session.num_cached == 90 and session.missing == decoding.tokens[-1:]
    before = session.propose(decoding.tokens, 9)
    assert decoding.session(drafter).propose(decoding.tokens, 9) == before


def test_of_a_long_prompt_its_end_is_read_and_positions_stay() -> None:
    """The head's own KV begins late; the target's does not."""
    decoding = Decoding(target_of("llama"), text_prompt(120))
    drafter = bound(fitted("llama")[0], prompt_tokens=40)
    session = decoding.session(drafter)
    session.propose(decoding.tokens, 9)
    assert session.first == 80 and session.placement.position_offsets == (80,)
    assert drafter.cache.length(session.placement.row) == 40
    assert session.sight.committed == 120


def short_head() -> GlideHead:
    """That was trained on texts of 64 tokens, and five drafted ones."""
    head = fitted("llama")[0]
    short = GlideHead(replace(head.config, block=replace(head.config.block, max_positions=69)))
    short.load_state_dict(head.state_dict())
    return short.double()


def test_what_is_due_is_what_is_then_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prompt, of what was chosen while nobody asked, and anew where the oldest tokens leave;
    but for the last few tokens, which a proposal reads by the way."""
    for module in ("session", "drafter"):
        monkeypatch.setattr(f"mmspec.drafters.glide.{module}.FEW", 4)
    drafter, decoding = bound(short_head()), Decoding(target_of("llama"), text_prompt(20))
    num_read, read = [0], GlideScorer.read

    def reading(self: GlideScorer, trees: Sequence[TokenTree], *args: Any) -> None:
        num_read[0] += sum(tree.num_nodes for tree in trees)
        read(self, trees, *args)

    monkeypatch.setattr(GlideScorer, "read", reading)
    session = decoding.session(drafter)
    for more in (0, 12, 28, 6, 2, 50, 90):  # 64 are passed at the 6, the 50 and the 90
        decoding.go_on(more)
        due = session.preparation(len(decoding.tokens))
        num_read[0] = 0
        session.prepare(decoding.tokens)
        said = 0 if due is None else due.tokens / drafter.read_share
        assert num_read[0] <= round(said) <= num_read[0] + 4
        assert session.preparation(len(decoding.tokens)) is None
        session.propose(decoding.tokens, 6)
    assert len(decoding.tokens) > 3 * drafter.num_readable


def test_past_the_texts_that_it_was_trained_on_the_oldest_tokens_leave() -> None:
    drafter, decoding = bound(short_head()), Decoding(target_of("llama"), text_prompt(20))
    assert drafter.num_readable == 64
    session, firsts = decoding.session(drafter), set[int]()
    for _ in range(80):
        tree = session.propose(decoding.tokens, 6)
        assert tree.tokens[0] == decoding.tokens[-1] and tree.num_nodes > 1
        firsts.add(session.first)
        assert len(decoding.tokens) - session.first <= 64
        decoding.go_on()
    assert len(firsts) == 3 and min(firsts) == 0, "half of them at once, not one a step"
    # What is left is as if it had been read so from the start.
    fresh = decoding.session(drafter)
    fresh.first = session.first
    assert fresh.propose(decoding.tokens, 6) == session.propose(decoding.tokens, 6)


def test_it_sees_images_by_the_targets_keys() -> None:
    """The ids are the same, and so is all that the head reads itself."""
    target = target_of("qwen2_5_vl")
    inputs = prompt_inputs(FAMILIES["qwen2_5_vl"], "image_middle", num_text_tokens=20)
    other = {n: -value if value.is_floating_point() else value for n, value in inputs.items()}
    drafter, trees = bound(drawn(target), target), list[TokenTree]()
    for given in (inputs, inputs, other):
        decoding = Decoding(target, from_inputs(given, target.model.config))
        decoding.tokens[-1] = 5  # whatever the target says
        trees.append(decoding.session(drafter).propose(decoding.tokens, 9))
    assert trees[0] == trees[1] != trees[2]


def test_rows_of_a_batch_draft_as_they_do_alone() -> None:
    drafter, target = bound(fitted("llama")[0]), target_of("llama")
    cache = target.new_cache()
    prompts = [text_prompt(length, seed=length) for length in (9, 40, 70)]
    decodings = [Decoding(target, prompt, cache) for prompt in prompts]
    alone = [d.session(drafter).propose(d.tokens, 9) for d in decodings]
    sessions = [d.session(drafter) for d in decodings]
    assert drafter.propose_together(sessions, [d.tokens for d in decodings], 9) == alone


# What it is made of


def test_a_folder_holds_what_was_saved(tmp_path: Path) -> None:
    head = drawn(target_of("qwen2_5_vl"), num_layers=2)
    save(head, tmp_path)
    drawn_before = torch.get_rng_state()
    again = load(tmp_path)
    assert torch.equal(torch.get_rng_state(), drawn_before), "weights were made that nobody reads"
    assert again.config == head.config
    for name, tensor in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    names = set(load_file(tmp_path / "model.safetensors"))
    assert not any("embed_tokens" in name or "lm_head" in name for name in names), "the target's"


def test_a_head_of_its_authors_form_is_read(tmp_path: Path) -> None:
    """Its own embedding and lm_head, of another width; no norm before the cross-attention; the
    target's last layers, as many as it has; old files hold the rotations too."""
    given = {
        "model_type": "llama", "vocab_size": 112, "hidden_size": 24, "intermediate_size": 40,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 64, "block_size": 5,
        "large_hidden_size": 64, "large_num_attention_heads": 4,
    }  # fmt: skip
    config = GlideHeadConfig.read(given, who="test")
    assert config.owns_ends and not config.has_cross_norm and config.target_layers == (-2, -1)
    assert config.target_head_dim == 16 and len(config.rope.frequencies) == 8
    tensors = GlideHead(config).state_dict()
    assert "model.layers.1.cross_attn.q_proj.weight" in tensors and "lm_head.weight" in tensors
    assert not any("cross_layernorm" in name for name in tensors)
    rotations = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    save_file({**tensors, **rotations}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(given))
    engine = mmspec.load(
        target_of("llama").model,
        letters(),
        overrides=["drafter.name=glide", f"drafter.glide.path={tmp_path}",
                   "decode.controller=fixed", "drafter.glide.min_confidence=0"],
    )  # fmt: skip
    request = Request({"input_ids": text_prompt(20).token_ids[None]}, max_new_tokens=12, seed=1)
    result = engine.generate(request)
    assert result.tokens == engine.generate(request, speculate=False).tokens
    assert result.stats.by_drafter["glide"].proposed > 20
    (drafter,) = engine.drafters
    assert drafter.head.target_layers == [0, 1]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_head_dim": 32}, "large_head_dim is 32, expected 16, the target's"),
        ({"num_target_heads": 3}, "large_num_attention_heads is 3, expected a multiple of the tar"),
        ({"target_value_dim": 8}, "large_value_dim is 8, expected 16, the target's"),
        ({"target_layers": (0, 1)}, r"target_layers is \[0, 1\], expected one for each of its 1"),
        ({"hidden_size": 32}, "hidden_size is 32, expected 64, as wide as the target's lm_head"),
        ({"owns_ends": True, "vocab_size": 99}, "vocab_size is 99, expected 112, the target's"),
    ],
)
def test_a_head_of_another_target_is_refused(changes: dict[str, Any], message: str) -> None:
    config = GlideHeadConfig.of_target(target_of("llama"))
    sizes = {n: changes.pop(n) for n in list(changes) if n in ("hidden_size", "vocab_size")}
    config = replace(config, block=replace(config.block, **sizes), **changes)
    with pytest.raises(ConfigError, match=f"drafter.glide: the head's {message}"):
        Glide(GlideHead(config)).for_target(target_of("llama"), None)


def test_a_layer_without_keys_is_told() -> None:
    with pytest.raises(ConfigError, match=r"looks at layer 2 of the target, which has 2; take a"):
        GlideHeadConfig.of_target(target_of("llama"), target_layer=2)


def test_what_is_no_head_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"glide.prompt_tokens=0: expected at least 1"):
        Glide(drawn(target_of("llama")), prompt_tokens=0)
    with pytest.raises(ConfigError, match=r"drafter.glide.path='': expected a head's folder"):
        mmspec.load(target_of("llama").model, drafter="glide")
    with pytest.raises(ModelError, match=r"no config.json; expected a head's folder"):
        load(tmp_path)
    block = GlideHeadConfig.of_target(target_of("llama")).block.as_json
    (tmp_path / "config.json").write_text(json.dumps(block))
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="says nothing of large_num_attention_heads"):
        load(tmp_path)
    config = GlideHeadConfig.of_target(target_of("llama")).as_json
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"missing: model.layers.0.* not known: w"):
        load(tmp_path)


def test_it_is_no_lower_drafter_of_a_cascade() -> None:
    """Which asks about texts that the target has not read."""
    with pytest.raises(ConfigError, match=r"cascade\.lower='glide': expected one of"):
        mmspec.load(
            target_of("llama").model,
            drafter="cascade",
            overrides=["drafter.cascade.lower=glide"],
        )
    with pytest.raises(
        ConfigError, match=r"cascade\.lower=glide: expected one that reads no KV of the target"
    ):
        Cascade(Glide(drawn(target_of("llama"))))
