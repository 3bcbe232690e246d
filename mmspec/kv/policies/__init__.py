"""Which committed tokens a view shows: one policy a file, the same contract (`base`)."""

from collections.abc import Callable

from mmspec.kv.policies.base import LayerState, Policy
from mmspec.kv.policies.composed import Composed
from mmspec.kv.policies.snapkv import SnapKV
from mmspec.kv.policies.topk_chunks import TopKChunks
from mmspec.kv.policies.visual import Visual
from mmspec.kv.policies.window import Window

POLICIES: dict[str, Callable[[], Policy]] = {
    "window": Window,
    "snapkv": SnapKV,
    "topk_chunks": TopKChunks,
    "visual": Visual,
}

__all__ = [
    "POLICIES",
    "Composed",
    "LayerState",
    "Policy",
    "SnapKV",
    "TopKChunks",
    "Visual",
    "Window",
]
