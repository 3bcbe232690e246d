"""A recorder for the CPU: as a CUDA graph it repeats operations on the same memory, and no Python.

What the recorded forward read of Python objects, and any tensor that it made of them, stays what it
was; what it read of tensors is read anew.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from mmspec.target.graphs import Computed, Recording
from mmspec.target.graphs.guard import NoSync


class TapeRecorder:
    """Counts what it made: `recordings`, by how often each was replayed."""

    def __init__(self) -> None:
        self.replays: list[int] = []

    def another(self, device: torch.device) -> "TapeRecorder":
        return TapeRecorder()

    def record(self, forward: Callable[[], Computed]) -> Recording:
        with NoSync(torch.device("cpu")):
            forward()
        tape = Tape()
        with tape, pytest.MonkeyPatch.context() as patch:
            tape.take_launches(patch)
            computed = forward()
        number = len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            self.replays[number] += 1
            tape.replay()

        return Recording(computed, replay)


class Operations:
    """Operations on tensors, to be repeated on the same memory."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], None]] = []

    def add(
        self,
        func: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        fresh: Sequence[Tensor],
    ) -> list[Tensor]:
        """`fresh` is what the operation returned, but for what it was given. Returns those of it
        that lie in memory of their own: the others are views, or were changed in place."""
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        lent, known = {_memory(tensor) for tensor in given}, {id(tensor) for tensor in given}
        own = [_memory(tensor) not in lent for tensor in fresh]

        def again() -> None:
            made = tree_leaves(func(*args, **kwargs))
            anew = [t for t in made if isinstance(t, Tensor) and id(t) not in known]
            for tensor, value, is_own in zip(fresh, anew, own, strict=True):
                if is_own:
                    tensor.copy_(value)

        self._steps.append(again)
        return [tensor for tensor, is_own in zip(fresh, own, strict=True) if is_own]

    def add_launch(self, again: Callable[[], None]) -> None:
        """A kernel, which is no operation of torch's."""
        self._steps.append(again)

    def replay(self) -> None:
        for step in self._steps:
            step()


class Tape(TorchDispatchMode):
    """Holds the operations that run within it, and what they were given and made."""

    def __init__(self) -> None:
        super().__init__()
        self._operations = Operations()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        made = func(*args, **named)
        given = [id(t) for t in tree_leaves((args, named)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(made) if isinstance(t, Tensor) and id(t) not in given]
        self._operations.add(func, args, named, outputs)
        return made

    def take_launches(self, patch: pytest.MonkeyPatch) -> None:
        """Launches of Triton kernels, which run beside torch."""
        try:
            from interpreted import LAUNCHER
        except ImportError:
            return
        launch = LAUNCHER.run

        def recorded(kernel: Any, *args: Any, **kwargs: Any) -> None:
            def again() -> None:
                launch(kernel, *args, **kwargs)

            with _disable_current_modes():
                again()
            self._operations.add_launch(again)

        patch.setattr(LAUNCHER, "run", recorded)

    def replay(self) -> None:
        self._operations.replay()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
