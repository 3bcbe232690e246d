"""SimulatedController: the bundled model by a clock of fixed costs."""

from collections.abc import Iterator
from random import Random

import pytest

import mmspec
from mmspec.bench.simulated import TINY_VLM, SimulatedController
from mmspec.engine import Engine
from mmspec.state import Prompt
from mmspec.training.tiny.data import quote

ROUNDS = 3


@pytest.fixture(scope="module")
def loaded() -> Iterator[Engine]:
    heads = "drafter.medusa.path=tiny-vlm/medusa"
    yield mmspec.load("tiny-vlm", overrides=["drafter.name=prompt_lookup+medusa", heads])


@pytest.fixture(scope="module")
def quoted(loaded: Engine) -> Prompt:
    assert loaded.inputs is not None
    sample = quote(Random("bench/quoting, 1k/1"), held_out=True, num_chars=1000)
    return loaded.inputs.encode(sample.prompt_text)


def ratio(loaded: Engine, prompt: Prompt, *names: str) -> float:
    """Plain decoding's time over theirs."""
    mine = [drafter for drafter in loaded.drafters if drafter.name in names]
    controller = SimulatedController(TINY_VLM)
    engine = Engine(loaded.target, loaded.inputs, mine, controller=controller)
    for _ in range(ROUNDS):
        engine.generate(prompt, temperature=0.0, max_new_tokens=100, seed=0, reuse=False)
    return controller.plain_s / controller.clock_s


def test_the_clock_is_that_of_the_fixed_costs_alone(loaded: Engine, quoted: Prompt) -> None:
    found = {ratio(loaded, quoted, "medusa") for _ in range(2)}
    assert len(found) == 1, found


def test_lookup_with_heads_quotes_about_as_fast_as_alone(loaded: Engine, quoted: Prompt) -> None:
    alone = ratio(loaded, quoted, "prompt_lookup")
    both = ratio(loaded, quoted, "prompt_lookup", "medusa")
    assert both > 0.9 * alone > 1.5, f"{both:.2f}x plain with heads, {alone:.2f}x without"
