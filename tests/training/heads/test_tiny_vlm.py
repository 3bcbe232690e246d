"""Longer trainings on the bundled model: pictures and texts, each kind of head."""

import time
from pathlib import Path

import pytest

import mmspec
from mmspec.gpu_check.heads import write_data
from mmspec.training import train_head

# Tokens a step in decoding texts that training never saw, with the default trees.
FLOORS = {"medusa": 1.3, "eagle2": 1.5, "eagle3": 1.3, "glide": 1.5}
MINUTES = 1.0


@pytest.mark.slow
@pytest.mark.parametrize("head", FLOORS)
def test_a_head_learns_what_the_bundled_model_says(head: str, tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", 120)
    engine = mmspec.load("tiny-vlm", drafter="none")
    overrides = ["train.answers=given", "train.rate=0.002", "train.batch_tokens=4096"]
    overrides += ["train.max_tokens=2500", "train.eagle3.steps=4"]
    trained = train_head(
        engine, str(data), head=head, out=tmp_path / "out", minutes=MINUTES, overrides=overrides
    )
    first, last = trained.first_acceptance, trained.acceptance
    assert first is not None and last is not None
    assert last.tokens_a_step > first.tokens_a_step
    fixed = [trained.override, "decode.controller=fixed"]
    fast = mmspec.load("tiny-vlm", drafter=trained.drafter, overrides=fixed)
    tokens = steps = 0
    begun = time.monotonic()
    for prompt in ("Tell a story about Brelo and Kani.", "Tell a story about Tarn and Ogre."):
        result = fast.generate(prompt, max_new_tokens=120)
        assert result.tokens == engine.generate(prompt, max_new_tokens=120).tokens
        tokens, steps = tokens + result.stats.new_tokens, steps + result.stats.steps
    print(f"{head}: {tokens / steps:.2f} tokens a step, {time.monotonic() - begun:.1f} s")
    assert tokens / steps > FLOORS[head]
