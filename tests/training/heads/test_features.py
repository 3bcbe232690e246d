"""What heads learn from is what drafters read: states and keys of the decode loop itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image

from mmspec.drafters.base import TappingDrafter
from mmspec.engine import Engine
from mmspec.inputs import InputProcessor
from mmspec.requests import Request
from mmspec.state import Prefill, Prompt, Scores, Taps
from mmspec.target import Target
from mmspec.target.cuts import Cuts
from mmspec.training.heads.examples import Example, ExampleMaker
from mmspec.training.heads.features import FeatureReader
from mmspec.training.heads.lessons import Lesson
from mmspec.tree import TokenTree

UNUSED: Any = None


def texts(*lengths: int) -> list[Example]:
    draw = np.random.default_rng(0)
    drawn = [draw.integers(3, 112, length) for length in lengths]
    return [
        Example(str(n), tokens, np.arange(len(tokens)) >= 3, 3) for n, tokens in enumerate(drawn)
    ]


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2_vl", "gpt2"])
def test_texts_read_together_or_behind_each_other_have_the_same_states(family: str) -> None:
    target = Target(FAMILIES[family].build(torch.float64))
    examples, taps = texts(5, 150, 12), frozenset([1, target.last_tap])
    together = FeatureReader(target, UNUSED, taps=taps).read(examples)
    with_keys = FeatureReader(target, UNUSED, taps=taps, kv_layer=1).read(examples)
    target.cuts = Cuts("it is said to see its whole prompt")  # 3 tokens are prefilled, 147 scored
    scored = FeatureReader(target, UNUSED, taps=taps, kv_layer=1).read(examples)
    assert together.kv is None and together.ids.shape == (3, 150)
    for other in (with_keys, scored):
        assert torch.equal(other.ids, together.ids) and torch.equal(other.learned, together.learned)
        for tap in taps:
            torch.testing.assert_close(other.hidden[tap], together.hidden[tap])
        torch.testing.assert_close(other.kv.keys, with_keys.kv.keys)  # type: ignore[union-attr]
    assert together.hidden[1][0, 5:].eq(0).all() and not together.learned[0, 5:].any()


def test_a_text_s_states_have_not_seen_what_is_to_be_said(nano: Engine) -> None:
    """Also where a prompt sees itself whole: what it said next would be no secret."""
    target = Target(FAMILIES["paligemma"].build(torch.float64))
    assert nano.inputs is not None and target.cuts.whole_because is not None
    maker = ExampleMaker(nano.inputs, eos_token_ids=frozenset([2]), max_tokens=400)
    (example,) = maker.make(Lesson("x", text="a text without a prompt"), {})
    before = 3 + example.tokens[:-1] % 90
    example, other = (replace(example, tokens=np.append(before, last)) for last in (5, 6))
    reader = FeatureReader(target, UNUSED, taps=frozenset([target.last_tap]))
    states, others = (reader.read([one]).hidden[target.last_tap][0] for one in (example, other))
    torch.testing.assert_close(states[:-1], others[:-1])
    assert not torch.allclose(states[-1], others[-1])


def test_a_text_by_itself_is_read_in_one_forward_where_no_token_sees_later_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Gemma 4's, whose prompts are read whole for their pictures' sake."""
    target = Target(FAMILIES["llama"].build(torch.float64))
    target.cuts = Cuts("a picture's tokens see later ones")
    monkeypatch.setattr(target, "score", None)
    (text,) = texts(150)
    reader = FeatureReader(target, UNUSED, taps=frozenset([1]))
    assert reader.read([replace(text, num_before=0)]).hidden[1].shape[:2] == (1, 150)


class Recording(TappingDrafter):
    """Drafts nothing, and keeps what drafters are given."""

    name = "recording"

    def __init__(self, taps: Taps) -> None:
        self.taps = taps
        self.states: list[torch.Tensor] = []

    def start(self, prompt: Prompt, prefill: Prefill, guide: object) -> "Recording":
        self.states.append(prefill.hidden[self._tap].clone())
        return self

    @property
    def _tap(self) -> int:
        (tap,) = self.taps.layers
        return tap

    def propose(self, tokens: list[int], budget: int) -> TokenTree:
        return TokenTree.root(tokens[-1])

    def observe(self, tree: TokenTree, verdict: object, scores: Scores) -> None:
        self.states.append(scores.hidden[self._tap].clone())

    def close(self) -> None:
        pass


def test_of_a_prompt_with_a_picture_the_states_are_those_of_its_decoding(
    nano: Engine, tmp_path: Path
) -> None:
    Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / "a.png")
    request = Request("Caption:", images=(str(tmp_path / "a.png"),))
    tap = nano.target.last_tap
    recording = Recording(Taps(frozenset([tap]), whole_prompt=True))
    engine = Engine(nano.target, nano.inputs, [recording])
    answer = engine.generate(request, max_new_tokens=6, ignore_eos=True)
    assert isinstance(nano.inputs, InputProcessor)
    maker = ExampleMaker(nano.inputs, eos_token_ids=frozenset([2]), max_tokens=400)
    (example,) = maker.make(Lesson("x", request), {"x": answer.tokens})
    reader = FeatureReader(nano.target, nano.inputs, taps=frozenset([tap]), kv_layer=1)
    batch = reader.read([example])
    decoded = torch.cat(recording.states)
    assert len(decoded) == example.num_tokens - 2  # the last two were chosen, not observed
    torch.testing.assert_close(batch.hidden[tap][0, :-2], decoded, rtol=1e-4, atol=1e-4)
    assert batch.kv is not None and batch.kv.keys.shape[2] == example.num_tokens
    changed = Image.effect_noise((40, 40), 90).convert("L")
    changed.save(tmp_path / "a.png")  # other pixels, as many tokens: other states
    other = reader.read([example])
    assert not torch.allclose(other.hidden[tap], batch.hidden[tap])


def test_what_m_rope_counts_behind_a_prompt_comes_along() -> None:
    target = Target(FAMILIES["qwen2_vl"].build(torch.float32))
    batch = FeatureReader(target, UNUSED, taps=frozenset(), kv_layer=0).read(texts(5, 9))
    assert batch.offsets is not None and batch.offsets.tolist() == [[0, 0, 0], [0, 0, 0]]
