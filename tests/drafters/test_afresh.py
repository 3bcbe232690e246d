"""A drafter's state brings time and nothing else: what it proposes is what the same one says that
is asked for the first time, behind a prompt that is the whole text. Drafts cannot make a text
wrong, so nobody else would see a key or a state that stands at the wrong place."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from adversary import Adversary
from dflash_heads import unfitted as drafting_blocks
from draft_models import stranger
from glide_heads import drawn
from medusa_heads import unfitted
from ragged import requests_of, target_of
from torch.nn.functional import pad

from mmspec.build_drafters import AnyDrafter
from mmspec.calibration import Calibration
from mmspec.drafters.base import Drafter, DrafterForTarget, TappingDrafter
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.dflash import DFlash
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.glide import Glide
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.medusa import Medusa
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.engine import Engine
from mmspec.state import Prefill, Prompt
from mmspec.target import Target
from mmspec.tree import TokenTree

TREE: dict[str, Any] = {"max_depth": 3, "top_k": 2, "min_confidence": 0.0}
WHOLE: dict[str, Any] = {"policy": "window", "budget": 4096, "recent": 64, "max_share": 1.0}
# A second layer of a glide head's is not among them: it keeps what it saw while it drafted.
MAKERS: dict[str, Callable[[Target], AnyDrafter]] = {
    "draft_model": lambda _: DraftModel(stranger(112), **TREE),
    "draft_model/itself": lambda target: DraftModel(target, **TREE),
    "compressed_kv": lambda _: CompressedKV(**WHOLE, **TREE),
    "layer_skip": lambda _: LayerSkip(layers=[1], **TREE),
    "glide": lambda target: Glide(drawn(target), branching="best", **TREE),
    "dflash": lambda target: DFlash(drafting_blocks(target.model), top_k=2, min_confidence=0.0),
    "medusa": lambda target: Medusa(unfitted(target.model, spread=0.02), **TREE),
    "cascade": lambda _: Cascade(
        PromptLookup(min_match=1, min_confidence=0.0),
        CompressedKV(**WHOLE, min_confidence=0.0),
        max_depth=3,
        lower_nodes=4,
    ),
}
# Of a prompt's beginning that was known it reads nothing, where afresh it reads all.
BEGINS_LATER = ("dflash",)


def bound(name: str, target: Target) -> Drafter:
    made = MAKERS[name](target)
    assert isinstance(made, DrafterForTarget)
    return made.for_target(target, None)


def with_text(prompt: Prompt, text: Sequence[int]) -> Prompt:
    """A prompt of the `text`, which begins with this one."""
    more, inputs = len(text) - prompt.num_tokens, dict(prompt.model_inputs)
    for name, value in inputs.items():
        if value.shape == (1, prompt.num_tokens):  # says something of each token
            inputs[name] = pad(value, (0, more), value=int(name == "attention_mask"))
    return replace(prompt, token_ids=torch.tensor(text), model_inputs=inputs)


def said_afresh(target: Target, drafter: Drafter, session: Any, text: list[int]) -> TokenTree:
    """`session`: (prompt, guide) of the one that was asked."""
    prompt, guide = session
    whole, cache = with_text(prompt, text[:-1]), target.new_cache()
    taps = drafter.taps.layers if isinstance(drafter, TappingDrafter) else ()
    prefill = target.prefill(whole, cache, cache.open(len(text)), taps=taps)
    fresh = drafter.start(whole, replace(prefill, cache=cache), guide)
    tree = fresh.propose(text, 8)
    fresh.close()
    return tree


def alike(tree: TokenTree, other: TokenTree) -> bool:
    """But for what running states make of the order in which tokens were added up."""
    is_same = tree.tokens == other.tokens and tree.parents == other.parents
    return is_same and tree.confidence == pytest.approx(other.confidence, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2_5_vl", "lfm2"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_proposal_is_what_it_would_be_afresh(
    name: str, family: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows of many lengths, with images or running states, their prompts in chunks and then known;
    of the drafts some is taken and some is not, by trees that another drafter has a part in.
    Sampled and greedy in turn."""
    target, layouts = target_of(family), ["text"] * 3
    if family == "qwen2_5_vl":
        layouts = ["image_middle", "text", "image_last"]
    sampling = ["greedy", "t1"][([*MAKERS].index(name) + (family == "llama")) % 2]
    drafter, other = bound(name, target), bound(name, target)
    sessions, start = dict[int, Any](), drafter.start
    checked, wrong = list[int](), list[str]()

    def starting(prompt: Prompt, prefill: Prefill, guide: Any) -> Any:
        session = start(prompt, prefill, guide)
        sessions[id(session)] = prompt, guide
        return session

    together = drafter.propose_together  # type: ignore[attr-defined]

    def watching(asked: Sequence[Any], texts: Sequence[Sequence[int]], budget: int) -> Any:
        trees = together(asked, texts, budget)
        for session, text, tree in zip(asked, texts, trees, strict=True):
            afresh = said_afresh(target, other, sessions[id(session)], list(text))
            if not alike(tree, afresh):
                wrong.append(f"behind {len(text)} tokens: {tree} and not {afresh}")
            checked.append(tree.num_nodes)
        return trees

    # What was learnt of earlier drafts is told by the confidences alone.
    monkeypatch.setattr(Calibration, "rate", lambda self, bucket, prior: prior)
    monkeypatch.setattr(drafter, "start", starting)
    monkeypatch.setattr(drafter, "propose_together", watching)
    requests = requests_of(family, sampling, layouts)
    plain = Engine(target, None)
    truths = {
        tuple(r.prompt["input_ids"][0].tolist()): plain.generate(r).tokens  # type: ignore[index,call-overload]
        for r in requests
    }
    beside = Adversary(truths, 112)
    engine = Engine(
        target,
        None,
        [drafter, beside],
        controller="fixed",
        max_nodes=8,
        max_rows=3,
        prefix_bytes=0 if name in BEGINS_LATER else 2**24,
        prefill_chunk=16,
    )
    results = [result for _ in range(2) for result in engine.generate(requests)]
    assert not wrong, f"{len(wrong)} of {len(checked)}: {wrong[0]}"
    assert all(drafter.name in result.stats.by_drafter for result in results)
    told = [record for record in caplog.records if record.name.startswith("mmspec")]
    assert not told, caplog.text  # that rows failed together, for one
    assert len(checked) > 20 and min(checked) > 1
