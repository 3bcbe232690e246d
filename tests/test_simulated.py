"""SimulatedController: the bundled model by a clock of fixed costs."""

import importlib.util
import sys
from pathlib import Path
from random import Random

import pytest

import mmspec
from mmspec.engine import Engine
from mmspec.training.tiny.data import quote

SCRIPT = Path(__file__).parents[1] / "scripts" / "simulated.py"
spec = importlib.util.spec_from_file_location("simulated", SCRIPT)
assert spec is not None and spec.loader is not None
simulated = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = simulated  # where its dataclasses look for it
spec.loader.exec_module(simulated)


@pytest.fixture(scope="module")
def loaded() -> Engine:
    heads = "drafter.medusa.path=tiny-vlm/medusa"
    return mmspec.load("tiny-vlm", overrides=["drafter.name=prompt_lookup+medusa", heads])


def ratio(loaded: Engine, *names: str, num_chars: int, num_prompts: int, rounds: int) -> float:
    """Plain decoding's time over theirs, quoting from ledgers of `num_chars`."""
    assert loaded.inputs is not None
    mine = [drafter for drafter in loaded.drafters if drafter.name in names]
    controller = simulated.SimulatedController(simulated.TINY_VLM)
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
