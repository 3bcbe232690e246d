"""Device: what happens to each operation while CUDA is pretended."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # a mode brings it in, and it looks through torch.cuda
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from mmspec.target.graphs.guard import looks_at_values
from pretend.memory import CUDA, known_to_torch, seen_on
from pretend.runtime import Capture, take_place_of_cuda
from pretend.values import spoil

_ATEN = torch.ops.aten
_COPIES = (_ATEN.copy_.default, _ATEN._to_copy.default)
_INDEXING = (_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default)
_HERE_ONLY = ("for_cpu", "mkldnn", "onednn", "quantized::", "fbgemm")  # no kernels on a GPU
_OWN = Path(__file__).parent
_FERRIES = ("mmspec/uploads.py", "mmspec/reads.py")  # who calls them tells more


@dataclass(frozen=True)
class Wait:
    """The CPU waited for all that the device had been told to do."""

    why: str
    where: str  # file:line of mmspec, or of whoever else called torch

    def __str__(self) -> str:
        return f"{self.where} ({self.why})"


@dataclass(frozen=True)
class Launch:
    """The device was told to do something; a replayed graph is one, whatever is in it."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.where} ({self.what})"


class Device(TorchDispatchMode):
    """Runs what comes to CUDA tensors on the CPU, under CUDA's rules."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self.launches: list[Launch] = []  # what was recorded and replayed is not among them
        self.told: list[Wait | Launch] = []  # both, in their order
        self.capture: Capture | None = None  # the graph that is being recorded
        self._pinned: dict[int, tuple[Tensor, Tensor]] = {}  # on their way: source, as it was
        self._coming: list[tuple[Tensor, Tensor]] = []  # on the CPU, and what will be there

    @contextmanager
    def counted(self) -> Iterator[list[Wait]]:
        """The waits within it."""
        waits: list[Wait] = []
        before = len(self.waits)
        yield waits
        waits += self.waits[before:]

    def launch(self, what: str) -> None:
        """Counts one, unless it is only recorded."""
        if self.capture is None:
            self.launches.append(Launch(what, _caller(but=_FERRIES)))
            self.told.append(self.launches[-1])

    def wait(self, why: str) -> None:
        """Counts one. Raises RuntimeError while a graph is recorded."""
        if self.capture is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {why}")
        self.waits.append(Wait(why, _caller()))
        self.told.append(self.waits[-1])
        self.arrive()

    def arrive(self) -> None:
        """What was on its way without a wait is there."""
        for source, as_it_was in self._pinned.values():
            if not torch.equal(source, as_it_was):
                raise AssertionError("pinned memory was changed while a copy of it was under way")
        self._pinned.clear()
        for place, value in self._coming:
            place.copy_(value)
        self._coming.clear()

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
        if not any(t.is_cuda for t in tensors) and (place is None or place.type != "cuda"):
            return func(*args, **named)
        if is_made_of_others(func):
            with self:
                return func.decompose(*args, **named)
        if func.is_view:
            return func(*args, **named)
        self._refuse(func, args, tensors)
        if func is _ATEN._scaled_dot_product_flash_attention.default:
            return self._flash(*args, **named)
        if func in _COPIES:
            self._see_copy(func, args, named)
        elif looks_at_values(func, args):
            self.wait(str(func))
        to_cuda = any(t.is_cuda for t in tensors) if place is None else place.type == "cuda"
        if place is not None:
            named["device"] = torch.device("cpu")
        made = self.compute(func, args, named, to_cuda=to_cuda)
        if func is _ATEN.copy_.default and self._runs_on(func, args, named):
            with _disable_current_modes():
                self._coming.append((args[0], args[0].clone()))
                args[0].fill_(77) if args[0].dtype == torch.uint8 else spoil(args[0])
        return made

    def _runs_on(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether it is a copy to pinned memory that the CPU does not wait for."""
        to, source = args[:2]
        may_run_on = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        return may_run_on and source.is_cuda and not to.is_cuda and is_pinned(to)

    def _flash(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        return_debug_mask: bool = False,
        *,
        scale: float | None = None,
    ) -> tuple[Any, ...]:
        """CUDA's, by the CPU's, which returns less."""
        if query.dtype not in (torch.float16, torch.bfloat16):
            raise RuntimeError("No available kernel: FlashAttention takes float16 and bfloat16")
        function = _ATEN._scaled_dot_product_flash_attention_for_cpu.default
        made = self.compute(
            function, (query, key, value, dropout_p, is_causal), {"scale": scale}, to_cuda=True
        )
        return (*made, None, None, query.shape[2], key.shape[2], None, None, None)

    def compute(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], *, to_cuda: bool
    ) -> Any:
        """On the CPU, in the same memory; new tensors go to the device if `to_cuda`."""
        given = {}  # by identity of what stands for it

        def lent(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.is_cuda:
                return leaf
            own = seen_on(leaf, "cpu")
            given[id(own)] = leaf, own
            return own

        with _disable_current_modes():
            lent_args, lent_kwargs = tree_map(lent, (tuple(args), dict(kwargs)))
            if self.capture is not None:
                self.capture.before(func, lent_args, lent_kwargs)
            made = func(*lent_args, **lent_kwargs)
            fresh = [t for t in tree_leaves(made) if isinstance(t, Tensor) and id(t) not in given]
            if leaves_undefined(func):
                for tensor in fresh:
                    spoil(tensor)
            if self.capture is not None:
                self.capture.after(func, lent_args, lent_kwargs, fresh)
            if _does_something(func, lent_args, fresh):
                self.launch(str(func))
            for leaf, own in given.values():
                if own.shape != leaf.shape:  # `out` was given its size
                    leaf.data = seen_on(own, "cuda")

            def returned(leaf: Any) -> Any:
                if not isinstance(leaf, Tensor):
                    return leaf
                if id(leaf) in given:
                    return given[id(leaf)][0]
                return seen_on(leaf, "cuda") if to_cuda else leaf

            return tree_map(returned, made)

    def _refuse(self, func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
        if any(part in str(func.name()) for part in _HERE_ONLY):
            raise NotImplementedError(f"{func} has no kernel for CUDA")
        if func in _COPIES:
            return
        if func in _INDEXING and any(i is not None and not i.is_cuda and i.ndim for i in args[1]):
            self.wait(f"{func} copies indices to the device")
        refuse_other_devices(func, args, tensors)

    def _see_copy(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        if func is _ATEN.copy_.default:
            to, source = args[:2]
            target = to.device
            may_run_on = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        else:
            source = args[0]
            target = torch.device(kwargs.get("device") or source.device)
            may_run_on = bool(kwargs.get("non_blocking", False))
        if target.type == source.device.type:
            return
        if func is _ATEN.copy_.default and self._runs_on(func, args, kwargs):
            return
        if target.type == "cpu":
            self.wait("a copy to the CPU")
        elif not source.ndim and func is _ATEN.copy_.default:
            pass  # a number, given with the launch
        elif not may_run_on:
            self.wait("a copy from the CPU")
        elif self.capture is not None:
            raise RuntimeError("a copy from the CPU would be recorded as it is now")
        elif is_pinned(source):
            self._pinned[source.data_ptr()] = source, source.clone()


def refuse_other_devices(func: Any, args: Sequence[Any], tensors: Sequence[Tensor]) -> None:
    """Raises RuntimeError where the operation's tensors lie on several."""
    if func in _INDEXING:  # indices may be elsewhere, and are copied
        indexed = args[0].device.type
        if any(i is not None and i.ndim and i.device.type not in ("cpu", indexed) for i in args[1]):
            raise RuntimeError("indices should be on the device of the indexed tensor")
        tensors = [args[0], *args[2:3]] if func is not _ATEN.index.Tensor else [args[0]]
    places = {t.device.type for t in tensors if t.ndim}
    if len(places) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found {sorted(places)} in {func}"
        )


def is_pinned(tensor: Tensor) -> bool:
    return bool(getattr(tensor, "_is_pretended_pinned", False))


def is_made_of_others(func: Any) -> bool:
    if func is _ATEN.scaled_dot_product_attention.default:
        return False  # it would look for a kernel of CUDA's
    return bool(
        torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
    )


def leaves_undefined(func: Any) -> bool:
    return func in (
        _ATEN.empty.memory_format,
        _ATEN.empty_strided.default,
        _ATEN.empty_like.default,
        _ATEN.new_empty.default,
        _ATEN.new_empty_strided.default,
    )


def _does_something(func: Any, args: Sequence[Any], fresh: Sequence[Tensor]) -> bool:
    """Whether a GPU is told of it: not where memory is only found for it, or nothing is in it."""
    if leaves_undefined(func) or func is _ATEN.resize_.default:
        return False
    changed = fresh or [t for t in tree_leaves(args) if isinstance(t, Tensor)][:1]
    return any(tensor.numel() for tensor in changed)


def _caller(*, but: tuple[str, ...] = ()) -> str:
    """The innermost frame of mmspec, `but` of those files; else the innermost that is neither
    torch's nor ours."""
    found = [frame for frame in frames() if not frame[0].endswith(but)]
    own = [f for f in found if "/mmspec/" in f[0]]
    other = [f for f in found if "/torch/" not in f[0]]
    name, line = (own or other or found)[0]
    return f"{'/'.join(Path(name).parts[-3:])}:{line}"


def frames() -> Iterator[tuple[str, int]]:
    """(file, line) of whoever called, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(str(_OWN)):
            yield name, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]


class Numbered(TorchFunctionMode):
    """Calls say "cuda:0" for "cuda", which C++ would ask its own CUDA for the number of."""

    def __init__(self, place: torch.device) -> None:
        super().__init__()
        self._place = place

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.cuda:
            return args[0].to(self._place)
        if func is Tensor.__deepcopy__ and args[0].device == self._place:  # it copies the storage
            return args[0].clone()
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args = tuple(map(self._numbered, args))
        named = {name: self._numbered(value) for name, value in (kwargs or {}).items()}
        if func in (torch.tensor, torch.as_tensor):  # they copy past all modes
            place = named.pop("device", None)
            made = func(*args, **named)
            return made if place is None else made.to(place)
        if func is Tensor.__getitem__:  # of a list it makes a tensor, likewise
            own, index = args
            index = tuple(map(_as_index, index)) if isinstance(index, tuple) else _as_index(index)
            args = (own, index)
        return func(*args, **named)

    def _numbered(self, argument: Any) -> Any:
        if isinstance(argument, torch.device):
            is_place = argument.type == self._place.type and argument.index is None
        else:
            is_place = isinstance(argument, str) and argument == self._place.type
        return self._place if is_place else argument


def _as_index(part: Any) -> Any:
    return torch.tensor(part) if isinstance(part, list) else part


@contextmanager
def device() -> Iterator[Device]:
    """Within it there is a CUDA device."""
    pretended = Device()
    with pytest.MonkeyPatch.context() as patch, known_to_torch("cuda"):
        take_place_of_cuda(pretended, patch)
        with Numbered(CUDA), pretended:
            yield pretended
