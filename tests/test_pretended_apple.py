"""On an Apple GPU the texts are the CPU's: on a machine without one, on a pretended one."""

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from eagle_heads import fitted
from families import FAMILIES, prompt_inputs
from matrix import Cell, covering_cells
from pretend.apple import apple
from pretend.cells import run_on_apple

import mmspec
from mmspec.check import run_check
from mmspec.check.difference import explain
from mmspec.check.rounding import rounding_bound
from mmspec.check.run import _natively
from mmspec.config import Config, DecodeConfig
from mmspec.drafters.eagle import Eagle
from mmspec.requests import Request, Result
from mmspec.state import Prompt

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pretended in Linux's libc10.so")

INPUTS = prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=20, seed=1)
# It has no float64.
CELLS = [replace(c, dtype="float32") for c in covering_cells() if c.exactness == "standard"]


def assert_as_plain(cell: Cell, **options: int) -> None:
    outcome = run_on_apple(cell, **options)
    assert not outcome.mismatches, f"{cell}: {outcome.mismatches}"


@pytest.mark.parametrize(
    "cell",
    [
        Cell("llama", "eagle1", "warped", 3, "text", dtype="float32"),
        Cell("qwen2_5_vl", "cascade", "t1", 3, "image_middle", reuse="chunks", dtype="float32"),
    ],
    ids=str,
)
def test_texts_are_the_cpus(cell: Cell) -> None:
    assert_as_plain(cell, new_tokens=12)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_in_every_family(cell: Cell) -> None:
    assert_as_plain(cell)


def test_another_rule_weighs_what_a_head_there_drew() -> None:
    model = FAMILIES["llama"].build(torch.float32)
    head = fitted(model, 1)

    def answer() -> tuple[tuple[int, ...], int]:
        drafter = Eagle(head, max_depth=3, min_confidence=0.0, draw="sample")
        decode = DecodeConfig(verifier="recursive", controller="fixed")
        engine = mmspec.load(model, config=Config(decode=decode), drafter=drafter)
        result = engine.generate(INPUTS, max_new_tokens=10, temperature=0.8, top_k=30, seed=4)
        return result.tokens, result.stats.accepted_tokens

    expected = answer()
    assert expected[1] > 0
    with apple():
        model = model.to("mps")
        assert answer() == expected


def test_a_model_is_checked_there() -> None:
    with apple() as gpu:
        engine = mmspec.load("nano-vlm", device="mps", dtype="float32")
        assert engine.target.device.type == "mps"
        asked = [engine.prepare(mmspec.Request(words)) for words in ("Say it.", "And this?")]
        sampling = {"temperature": 1.0, "top_p": 0.9}
        report = run_check(engine, asked, seeds=(3,), sampling=sampling, max_new_tokens=12)
        assert report.is_identical and len(report.comparisons) > 3
        prompt = asked[0].prompt
        assert isinstance(prompt, Prompt)
        assert 0 < rounding_bound(engine.target.model, prompt, [65, 66, 67]) < 1e-3

        def natively(request: Request) -> Result:  # as if it had said another first token
            return replace(_natively(engine, [request])[0], tokens=said.tokens)

        drawn = replace(asked[0], temperature=1.0, top_p=0.9, seed=3, max_new_tokens=6)
        plain = engine.generate(drawn)
        said = replace(plain, tokens=(plain.tokens[0] + 1,))
        found = explain(engine, drawn, plain, said, again=natively, bound=lambda: 1e-3)
        assert found.error is not None and found.error < 1e-3
    assert gpu.num_computed > 1000


@pytest.mark.parametrize(
    ("does", "error"),
    [
        (lambda there: there.double(), TypeError),
        (lambda there: there.new_zeros(1, dtype=torch.float64), TypeError),
        (lambda there: there.to("cpu", non_blocking=True), AssertionError),
        (lambda there: there.copy_(torch.zeros(2), non_blocking=True), AssertionError),
        (lambda there: there + torch.zeros(2), RuntimeError),
        (
            lambda there: torch.segment_reduce(there, "sum", lengths=there.long()),
            NotImplementedError,
        ),
    ],
)
def test_it_refuses_what_one_would(
    does: Callable[[torch.Tensor], object], error: type[Exception]
) -> None:
    with apple(), pytest.raises(error):
        does(torch.ones(2, device="mps"))
