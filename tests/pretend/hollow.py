"""A pretended device that computes nothing large: real sizes, without their time and memory.

Shapes, views, waits, and what is small, are as on the other one. Large results are memory that is
never touched, which takes none and holds zeros: whatever is decoded says the same, everywhere.
Triton's kernels are not run, nor compiled: what would be is told.
Not beside Triton's interpreter: TRITON_INTERPRET=0.

    TRITON_INTERPRET=0 python -m pretend.hollow SECTION     a section of gpu_check, as JSON
"""

import json
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from pretend import runtime
from pretend.device import Device, Numbered
from pretend.memory import CUDA, known_to_torch, seen_on

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
import compile_kernels

assert os.environ.get("TRITON_INTERPRET") == "0", "read when triton is imported"

_SMALL = 1 << 14  # elements that are computed with
_TOKENS = (10, 98)  # the best is one of them, wherever the best of many is asked for
_LAYERS = 5
_CAPABILITY = 90
_BYTES = 141 * 10**9


class HollowDevice(Device):
    def compute(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, to_cuda: bool
    ) -> Any:
        def really() -> Any:
            return super(HollowDevice, self).compute(func, args, kwargs, to_cuda=to_cuda)

        lent: dict[int, Tensor] = {}  # by what stands for them

        def shape_of(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return torch.device("meta") if isinstance(leaf, torch.device) else leaf
            meta = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
            lent[id(meta)] = leaf
            return meta

        with _disable_current_modes():
            own_args, own_kwargs = tree_map(shape_of, (tuple(args), dict(kwargs)))
            try:
                shapes = func(*own_args, **own_kwargs)
            except (NotImplementedError, RuntimeError):  # it looks at values
                return really()
        involved = [*lent.values(), *(t for t in tree_leaves(shapes) if isinstance(t, Tensor))]
        if all(tensor.numel() <= _SMALL for tensor in involved):
            return really()
        self.launch(str(func))
        with _disable_current_modes():
            return tree_map(lambda leaf: _made(leaf, lent, to_cuda=to_cuda), shapes)


def _made(leaf: Any, lent: Mapping[int, Tensor], *, to_cuda: bool) -> Any:
    """What was given, or memory of such a shape; what is small of it has values."""
    if not isinstance(leaf, Tensor):
        return leaf
    if id(leaf) in lent:
        return lent[id(leaf)]
    made = _zeros(leaf)
    if made.numel() <= _SMALL and not (made.dtype.is_floating_point or made.dtype == torch.bool):
        made.random_(*_TOKENS)
    return seen_on(made, "cuda") if to_cuda else made


def _zeros(like: Tensor) -> Tensor:
    """Memory that the system says is 0, and has not been touched: not calloc's, which clears what
    it hands out again."""
    span = 1 + sum((n - 1) * step for n, step in zip(like.shape, like.stride(), strict=True))
    space = mmap(-1, max(span, 1) * like.element_size(), flags=MAP_PRIVATE | MAP_ANONYMOUS)
    return torch.frombuffer(space, dtype=like.dtype).as_strided(like.shape, like.stride())


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _no_capture() -> SimpleNamespace:
    """A graph that holds nothing."""
    names = ("before", "keep", "after", "launched", "end", "replay")
    return SimpleNamespace(**dict.fromkeys(names, _nothing))


@contextmanager
def hollow() -> Iterator[None]:
    """Within it there is such a device."""
    pretended = HollowDevice()
    with pytest.MonkeyPatch.context() as patch, known_to_torch("cuda"):
        patch.setattr(runtime, "Capture", _no_capture)
        patch.setattr(runtime, "gc", SimpleNamespace(collect=_nothing))  # each time it took long
        patch.setattr(runtime, "_take_launches", _nothing)
        # A kernel that is not run leaves no values.
        patch.setattr(sys.modules[Device.__module__], "spoil", Tensor.zero_)
        patch.setattr(runtime._PROPERTIES, "total_memory", _BYTES)
        runtime.take_place_of_cuda(pretended, patch)
        with Numbered(CUDA), pretended:
            yield


@contextmanager
def compiling() -> Iterator[list[str]]:
    """Within it nothing is compiled or launched: what would be compiled, each once."""
    compiled: list[str] = []
    run = JITFunction.run

    def compile_nothing(
        self: Any,
        key: Any,
        signature: Mapping[str, str],
        device: int,
        constants: Mapping[tuple[int, ...], object],
        options: Any,
        hints: Mapping[tuple[int, ...], object],
        warmup: bool,
    ) -> SimpleNamespace:
        names = self.arg_names
        hinted = {names[place[0]] for place, hint in hints.items() if hint}
        given = {name: kind for name, kind in signature.items() if kind != "constexpr"}
        fixed = {names[place[0]]: value for place, value in constants.items()}
        compiled.append(
            f"{self.fn.__name__} of {given}, all but {sorted(given.keys() - hinted)} aligned, for "
            f"{fixed}, {options.num_warps} warps, early begin {options.launch_pdl}"
        )
        made = self.device_caches[device][0][key] = SimpleNamespace()
        return made

    driver.set_active(compile_kernels.AbsentGpu(_CAPABILITY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "_do_compile", compile_nothing)
        patch.setattr(
            JITFunction, "run", lambda kernel, *a, **k: run(kernel, *a, **{**k, "warmup": True})
        )
        yield compiled


def compile_ahead() -> None:
    """As `scripts/compile_kernels.py` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compile_kernels.triton_tree, "_device", lambda device: compile_kernels.H200)
        for launch in compile_kernels.all_launches(is_quick=False):
            launch()


def run(name: str) -> dict[str, object]:
    """A section of gpu_check as on a GPU, with fewer layers, and fewer of what is repeated; however
    long it takes here."""
    from mmspec.plan.shape import SHAPES

    for model, shape in SHAPES.items():
        SHAPES[model] = replace(shape, layers=_LAYERS)
    with compiling():
        compile_ahead()
    with compiling() as late, hollow(), pytest.MonkeyPatch.context() as patch:
        from mmspec.attention import conformance, ladder
        from mmspec.bench import harness
        from mmspec.gpu_check import (
            SECTIONS,
            Setting,
            clock,
            exactness,
            plain,
            report_lines,
            run_section,
            speed,
        )  # fmt: skip
        from mmspec.gpu_check.bars import verdicts
        from mmspec.gpu_check.recorder import plain as plain_of
        from mmspec.target import gpu_linears, triton_parts
        from mmspec.target.graphs import score

        for module, tokens, pairs in ((plain, 6, 3), (speed, 24, 2)):
            patch.setattr(module, "_TOKENS", tokens)
            patch.setattr(module, "_PAIRS", pairs)
        patch.setattr(exactness, "_TOKENS", 4)
        patch.setattr(exactness, "_SEEDS", (1,))
        few = clock.Clock.samples_ms

        def samples_ms(self: Any, works: Any) -> Any:
            self._rounds = min(self._rounds, 2)
            return few(self, works)

        patch.setattr(clock.Clock, "samples_ms", samples_ms)
        patch.setattr(ladder.RUNGS["matmul"], "_max_scores", 2**26)  # few tiles, and still several
        turns = harness.in_turns
        patch.setattr(harness, "in_turns", lambda ways, once, rounds: turns(ways, once, rounds=1))
        # What is computed says nothing: graphs, some tilings and an early begin are taken.
        timed, pays = gpu_linears.timed, triton_parts.pays

        def drawn(groups: Any, shape: Any, rows: int, clock: Callable[..., float]) -> Any:
            tried = timed(groups, shape, rows, clock)
            return {None: 2.0} | {tiling: random.random() for tiling in tried if tiling}

        patch.setattr(gpu_linears, "_error", lambda *tensors: 0.0)
        patch.setattr(score, "_distance", lambda *tensors: 0.0)
        patch.setattr(conformance, "_largest_error", lambda *found: (0.0, ""))
        patch.setattr(gpu_linears, "timed", drawn)
        patch.setattr(triton_parts, "pays", lambda *given: pays(*given) is not None)
        setting = Setting(torch.device("cuda:0"), minutes=math.inf)
        found = plain_of(run_section(name, SECTIONS[name], setting))
    told = [*report_lines({name: found}, is_small=False)]
    return {**found, "told": told, "bars": [*verdicts({name: found})], "compiled late": late}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(run(sys.argv[1]), default=str))
