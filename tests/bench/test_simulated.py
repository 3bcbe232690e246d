"""SimulatedController: the bundled model by a clock of fixed costs."""

from random import Random

import pytest

import mmspec
from mmspec.bench.simulated import TINY_VLM, SimulatedController
from mmspec.engine import Engine
from mmspec.training.tiny.data import quote


@pytest.fixture(scope="module")
def loaded() -> Engine:
    heads = "drafter.medusa.path=tiny-vlm/medusa"
    return mmspec.load("tiny-vlm", overrides=["drafter.name=prompt_lookup+medusa", heads])


def ratio(loaded: Engine, *names: str, num_chars: int, num_prompts: int, rounds: int) -> float:
    """Plain decoding's time over theirs, quoting from ledgers of `num_chars`."""
    assert loaded.inputs is not None
    mine = [drafter for drafter in loaded.drafters if drafter.name in names]
    controller = SimulatedController(TINY_VLM)
    engine = Engine(loaded.target, loaded.inputs, mine, controller=controller)
    draws = [Random(f"bench/quoting/{seed}") for seed in range(num_prompts)]
    samples = [quote(draw, held_out=True, num_chars=num_chars) for draw in draws]
    prompts = [loaded.inputs.encode(sample.prompt_text) for sample in samples]
    for prompt in prompts * rounds:
        engine.generate(prompt, temperature=0.0, max_new_tokens=100, seed=0, reuse=False)
    return controller.plain_s / controller.clock_s


def test_the_clock_is_that_of_the_fixed_costs_alone(loaded: Engine) -> None:
    found = {ratio(loaded, "medusa", num_chars=300, num_prompts=1, rounds=1) for _ in range(2)}
    assert len(found) == 1, found


@pytest.mark.slow
def test_lookup_with_heads_quotes_about_as_fast_as_alone(loaded: Engine) -> None:
    sizes = {"num_chars": 4000, "num_prompts": 3, "rounds": 2}
    alone = ratio(loaded, "prompt_lookup", **sizes)
    both = ratio(loaded, "prompt_lookup", "medusa", **sizes)
    assert both > 0.9 * alone > 1.2, f"{both:.2f}x plain with heads, {alone:.2f}x without"
