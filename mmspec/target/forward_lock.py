"""Forwards of one model, one after the other, whichever targets and threads they belong to."""

import threading
from weakref import WeakKeyDictionary

from torch import nn

_MAKING = threading.Lock()
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def forward_lock(model: nn.Module) -> threading.RLock:
    """The lock of a transformers model, for all who attach something to its modules or run it. A
    model within another, as a peft model's base, has the same one."""
    # Known to no single target: two of one model need not know of each other. By the decoder, as
    # embeddings are replaced when they are resized.
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    with _MAKING:
        return _LOCKS.setdefault(decoder, threading.RLock())
