"""The ladder: every backend of tree attention by its name, and which is asked first for a shape."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.flash_attn_2 import FlashAttention2
from mmspec.attention.flash_attn_3 import FlashAttention3
from mmspec.attention.flash_attn_4 import FlashAttention4
from mmspec.attention.flash_cpu import FlashCpu
from mmspec.attention.matmul import Matmul
from mmspec.attention.rung import LayerRule, Rung
from mmspec.attention.sdpa import Sdpa
from mmspec.attention.torch_flash import TorchFlash
from mmspec.attention.triton_tree import TritonTree
from mmspec.errors import ConfigError

RUNGS: dict[str, Rung] = {
    rung.name: rung
    for rung in (
        FlashAttention4(),
        FlashAttention3(),
        FlashAttention2(),
        TritonTree(),
        TorchFlash(),
        FlashCpu(),
        Sdpa(),
        Matmul(),
    )
}


@dataclass(frozen=True)
class Order:
    """Who is asked, one after the other, for calls up to a size."""

    majors: range  # of the device's compute capability
    pairs: int | None  # nodes * query heads of a KV head, at most; None: any
    rungs: tuple[str, ...]


_REST = ("flash_attn_2", "torch_flash", "sdpa", "matmul")  # the last takes every call
# By expectation until `scripts/bench_attention.py` has measured it. Few pairs are limited by
# memory, where one launch for prefix and tail is hard to beat. Many are limited by the products,
# where a kernel made for the generation may win: FlashAttention 3 on Hopper, 4 on Blackwell (on
# Hopper 4 does not share out one row's keys). A line for them, such as
# Order(range(9, 10), None, ("flash_attn_3", "triton", ...)) behind one for up to 64 pairs, belongs
# here once it was seen to; no package takes over by being installed.
CUDA_ORDERS: tuple[Order, ...] = (
    Order(range(9, 10), None, ("triton", "flash_attn_3", "flash_attn_4", *_REST)),
    Order(range(10, 12), None, ("triton", "flash_attn_4", *_REST)),
    Order(range(0, 100), None, ("triton", *_REST)),
)
CPU_ORDER = ("flash_cpu", "matmul")
_OTHER_ORDER = ("sdpa", "matmul")


def order_for(query: Tensor, kv_heads: int) -> tuple[str, ...]:
    """The names of the rungs to ask for a `query` (batch, heads, nodes, head_dim), first ones
    first."""
    if query.device.type == "cpu":
        return CPU_ORDER
    if query.device.type != "cuda":
        return _OTHER_ORDER
    major, _ = torch.cuda.get_device_capability(query.device)
    pairs = query.shape[1] // kv_heads * query.shape[2]
    return next(
        order.rungs
        for order in CUDA_ORDERS
        if major in order.majors and (order.pairs is None or pairs <= order.pairs)
    )


def rungs_for(
    query: Tensor, keys: Tensor, values: Tensor, *, call: TreeCall, rule: LayerRule
) -> Iterator[Rung]:
    """Who can compute the call, best first: the backend that it names, then those of the order.
    Raises RuntimeError where nobody can."""
    found = False
    for name in dict.fromkeys(_names(query, keys, call)):
        rung = RUNGS[name]
        if call.prepared is not None and not rung.is_graph_safe:
            continue
        if not rung.missing() and rung.can_attend(query, keys, values, rule=rule):
            found = True
            yield rung
    if not found:
        raise RuntimeError(
            f"no attention backend takes a {'captured ' if call.prepared else ''}call of "
            f"{tuple(query.shape)} {query.dtype} on {query.device}, reach {rule.reach}"
        )


def _names(query: Tensor, keys: Tensor, call: TreeCall) -> Iterator[str]:
    if call.backend != "auto":
        yield call.backend
    yield from order_for(query, keys.shape[1])


def check_backend(name: str) -> str:
    """The name, if it is "auto" or a backend that can run on this machine. Raises ConfigError."""
    if name == "auto":
        return name
    here = [known for known, rung in RUNGS.items() if not rung.missing()]
    if name not in RUNGS:
        raise ConfigError(
            f"decode.attention_backend={name!r}: expected auto or one of {', '.join(RUNGS)}; "
            f"available here: {', '.join(here)}"
        )
    missing = RUNGS[name].missing()
    if missing:
        raise ConfigError(
            f"decode.attention_backend={name!r} needs {missing}; available here: auto, "
            f"{', '.join(here)}"
        )
    return name
