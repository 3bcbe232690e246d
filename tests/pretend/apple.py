"""A pretended Apple GPU: tensors that say they are on `mps:0`, with a CPU that computes.

What MPS refuses is refused: float64, operations that torch has no kernel for there (by torch's own
list of them), tensors of two devices in one operation. So is a copy of mmspec's that the CPU does
not wait for: what lies at its place may be read or written at any time.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey, NativeFunction

from pretend.device import (
    Numbered,
    frames,
    is_made_of_others,
    leaves_undefined,
    refuse_other_devices,
)
from pretend.memory import APPLE, known_to_torch, seen_on
from pretend.values import spoil

_ATEN = torch.ops.aten
_COPIES = (_ATEN.copy_.default, _ATEN._to_copy.default)
_WIDE = (torch.float64, torch.complex128)
_KEYS = (
    DispatchKey.MPS,
    DispatchKey.CompositeExplicitAutograd,
    DispatchKey.CompositeExplicitAutogradNonFunctional,
)


class Apple(TorchDispatchMode):
    """Runs what comes to MPS tensors on the CPU, under the rules of MPS."""

    def __init__(self) -> None:
        super().__init__()
        self.num_computed = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, named)) if isinstance(t, Tensor)]
        place = named.get("device")
        place = None if place is None else torch.device(place)
        if not any(t.is_mps for t in tensors) and (place is None or place.type != "mps"):
            return func(*args, **named)
        if is_made_of_others(func):
            with self:
                return func.decompose(*args, **named)
        if func.is_view:
            return func(*args, **named)
        _refuse(func, args, named, tensors)
        is_there = any(t.is_mps for t in tensors) if place is None else place.type == "mps"
        if place is not None:
            named["device"] = torch.device("cpu")
        return self._compute(func, args, named, is_there=is_there)

    def _compute(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, is_there: bool
    ) -> Any:
        self.num_computed += 1
        given = {}  # by identity of what stands for it

        def lent(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_mps:
                return leaf
            own = seen_on(leaf, "cpu")
            given[id(own)] = leaf, own
            return own

        def returned(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if id(leaf) in given:
                return given[id(leaf)][0]
            if not is_there:
                return leaf
            if leaf.dtype in _WIDE:
                raise TypeError(_NO_FLOAT64)
            return seen_on(leaf, "mps")

        with _disable_current_modes():
            lent_args, lent_kwargs = tree_map(lent, (tuple(args), dict(kwargs)))
            made = func(*lent_args, **lent_kwargs)
            if leaves_undefined(func):
                tree_map(lambda t: spoil(t) if isinstance(t, Tensor) else None, made)
            for leaf, own in given.values():
                if own.shape != leaf.shape:  # `out` was given its size
                    leaf.data = seen_on(own, "mps")
            return tree_map(returned, made)


class _Calls(Numbered):
    """Attention is made of other operations: of MPS torch's own choice knows nothing here."""

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention and args[0].is_mps:
            named = dict(kwargs or {})
            mask = named.get("attn_mask")
            if mask is not None and mask.dtype == torch.bool:
                hidden = torch.zeros(mask.shape, dtype=args[0].dtype, device=APPLE)
                named["attn_mask"] = hidden.masked_fill(~mask, -torch.inf)
            return _ATEN._scaled_dot_product_attention_math(*args, **named)[0]
        return super().__torch_function__(func, types, args, kwargs)


_NO_FLOAT64 = (
    "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."
)


def _refuse(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tensors: Sequence[Tensor]
) -> None:
    if func in _COPIES:
        is_last_of_copy = func is _ATEN.copy_.default and len(args) > 2 and args[2]
        crosses = func is _ATEN._to_copy.default or args[0].device != args[1].device
        if crosses and (is_last_of_copy or kwargs.get("non_blocking")):
            direct = next(name for name, _ in frames() if "/torch/" not in name)
            if "/transformers/" not in direct:  # whose own matter it is
                raise AssertionError("a copy from or to MPS that nobody waits for")
        return
    name = func.name().removeprefix("aten::")
    if func.namespace == "aten" and not _has_kernel(name):
        raise NotImplementedError(
            f"The operator '{func.name()}' is not currently implemented for the MPS device."
        )
    refuse_other_devices(func, args, tensors)


@cache
def _functions() -> tuple[Mapping[str, NativeFunction], Mapping[DispatchKey, Any]]:
    folder = Path(torchgen.__file__).parent / "packaged/ATen/native"
    parsed = parse_native_yaml(str(folder / "native_functions.yaml"), str(folder / "tags.yaml"))
    return {str(f.func.name): f for f in parsed.native_functions}, parsed.backend_indices


def _has_kernel(name: str) -> bool:
    functions, indices = _functions()
    if (function := functions.get(name)) is None:
        return True  # made by torch's build: of what has one, for `out` and the like
    if function.structured_delegate is not None:
        function = functions[str(function.structured_delegate)]
    return any(indices[key].has_kernel(function) for key in _KEYS if key in indices)


class _Event:
    """All is done at once."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def query(self) -> bool:
        return True


@contextmanager
def apple() -> Iterator[Apple]:
    """Within it there is an Apple GPU."""
    _functions()  # before modes look at what it does
    with pytest.MonkeyPatch.context() as patch, known_to_torch("mps"):
        patch.setattr(torch, "Event", _Event)
        with _Calls(APPLE), Apple() as pretended:
            yield pretended
