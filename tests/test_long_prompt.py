"""scripts/long_prompt.py, and what its bound on memory stands on: no tensor of a chunk's forward
grows with the text but the buffers of its keys and values."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import model_of
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode

from mmspec.state import Prompt
from mmspec.target import Target

SCRIPT = Path(__file__).parent.parent / "scripts" / "long_prompt.py"
CHUNK, LENGTH = 1024, 4096


class Largest(TorchDispatchMode):
    """The most entries of a tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_late_chunk_makes_no_tensor_of_all_its_columns(family: str) -> None:
    model = model_of(family, "float32")
    largest: dict[str, int] = {}
    for attention in ("tree", "model"):
        target = Target(model, attention=attention)  # type: ignore[arg-type]
        prompt = Prompt(torch.arange(LENGTH) % 40 + 20)
        cache = target.new_cache()
        row = cache.open(LENGTH)
        for start in range(0, LENGTH, CHUNK):
            with Largest() as seen:
                target.prefill(prompt, cache, row, start=start, stop=start + CHUNK)
        largest[attention] = seen.entries
    assert largest["model"] >= CHUNK * LENGTH, "the test sees a mask where there is one"
    buffers = max(layer.keys.numel() for layer in cache.flat_layers)
    assert largest["tree"] < max(CHUNK * LENGTH // 2, buffers + 1), largest


def test_the_script_reports_what_a_prompt_took() -> None:
    spec = importlib.util.spec_from_file_location("long_prompt", SCRIPT)
    assert spec is not None and spec.loader is not None
    long_prompt = importlib.util.module_from_spec(spec)
    sys.modules["long_prompt"] = long_prompt  # its dataclasses look themselves up
    spec.loader.exec_module(long_prompt)
    args = argparse.Namespace(
        model="tiny-vlm", tokens=1500, new=4, drafter=None, keep=False, seed=2
    )
    report = long_prompt.measure(args, Console(quiet=True))
    assert (report.prompt_tokens, report.new_tokens, report.context) == (1500, 4, 1504)
    assert report.kv_bytes == 1504 * 2 * 4 * 2 * 64 * 4
    assert report.answer.startswith("Entr")
    assert report.chunks == 1
    # What the tests before have left may be given back meanwhile.
    assert report.base_bytes + report.prefill_peak_bytes > report.weight_bytes
