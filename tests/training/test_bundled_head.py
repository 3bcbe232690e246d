"""The head that is bundled with tiny-vlm drafts what nothing can be copied for."""

from collections.abc import Callable
from random import Random

import pytest

import mmspec
from mmspec.training.tiny.data import Sample, caption, count


@pytest.fixture(scope="module")
def engine() -> mmspec.Engine:
    overrides = {"drafter.medusa.path": "tiny-vlm/medusa"}
    return mmspec.load("tiny-vlm", drafter="medusa", overrides=overrides)


@pytest.mark.parametrize(("task", "floor"), [(caption, 4.0), (count, 2.5)])
def test_it_is_accepted_on_pictures_that_training_never_showed(
    task: Callable[..., Sample], floor: float, engine: mmspec.Engine
) -> None:
    sample = task(Random("bundled head"), held_out=True)
    asked = mmspec.Request(
        sample.prompt_text, images=(sample.image,), max_new_tokens=120, temperature=0
    )
    result = engine.generate(asked, speculate=True)
    assert result.tokens == engine.generate(asked, speculate=False).tokens
    assert result.stats.tokens_per_step >= floor
