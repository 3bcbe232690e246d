"""A prompt's later chunks on a GPU attend to the cache where it lies: no mask is as long as the
text. On the pretended device."""

import pretend
import pytest
import torch
from families import FAMILIES, prompt_inputs
from torch import Tensor

from mmspec.attention import chunk
from mmspec.attention.chunk_flash import ChunkFlash
from mmspec.inputs import from_inputs
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.target.masks import MaskRule

pytest.importorskip("triton", reason="needs triton")
IDS = torch.randint(5, 60, (40,), generator=torch.Generator().manual_seed(0))


def last_logits(family: str, dtype: torch.dtype, device: str, *stops: int) -> Tensor:
    target = Target(FAMILIES[family].build(dtype).to(device), attention="tree")
    cache, prompt = target.new_cache(), Prompt(IDS)
    row, start = cache.open(len(IDS)), 0
    for stop in stops:
        prefill = target.prefill(prompt, cache, row, start=start, stop=stop)
        start = stop
    return prefill.logits.float().cpu()


@pytest.mark.parametrize(
    ("family", "launches"),
    [
        ("llama", 2),  # both of its layers
        ("gpt_oss", 1),  # with sinks; the sliding layer goes in tiles
        ("gemma2", 0),  # a softcap
    ],
)
def test_chunks_say_what_the_whole_prompt_does(
    family: str, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = last_logits(family, torch.float32, "cpu", len(IDS))
    rounded = last_logits(family, torch.bfloat16, "cpu", len(IDS))
    calls, attend = [], ChunkFlash.attend

    def noted(*args: object, **kwargs: object) -> Tensor:
        calls.append(args)
        return attend(*args, **kwargs)  # type: ignore[arg-type]

    def refused(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError("a mask of chunk by text")

    monkeypatch.setattr(chunk, "_FEW", 0)
    monkeypatch.setattr(ChunkFlash, "attend", noted)
    monkeypatch.setattr(MaskRule, "build_chunk", refused)
    with pretend.device():
        exact = last_logits(family, torch.float32, "cuda", 17, len(IDS))
        half = last_logits(family, torch.bfloat16, "cuda", 17, len(IDS))
    assert len(calls) == launches
    torch.testing.assert_close(exact, expected, rtol=0, atol=2e-5)
    off = (rounded - expected).abs().max()
    assert (half - expected).abs().max() < 2 * off, "more than bfloat16 rounds"


@pytest.mark.parametrize("family", ["llama", "mllama"])
def test_a_later_chunk_waits_for_nothing(family: str) -> None:
    layout = "text" if family == "llama" else "image_first"
    model = FAMILIES[family].build(torch.float32)
    inputs = prompt_inputs(FAMILIES[family], layout, num_text_tokens=20)  # type: ignore[arg-type]
    prompt = from_inputs(inputs, model.config)
    with pretend.device() as cuda:
        target = Target(model.to("cuda"), attention="tree")
        cache = target.new_cache()
        row = cache.open(prompt.num_tokens)
        target.prefill(prompt, cache, row, stop=14)
        with cuda.counted() as waits:
            target.prefill(prompt, cache, row, start=14)
    assert not waits, [str(wait) for wait in waits]
