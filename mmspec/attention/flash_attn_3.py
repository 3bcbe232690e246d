"""FlashAttention 3 (arXiv 2407.08608) for the prefix, on Hopper; the tail is merged behind it."""

import torch
from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.flash_package import HALVES, FlashPackage, in_a_cache
from mmspec.attention.rows import Attended
from mmspec.attention.rung import LayerRule

_FORWARD_ONLY = "fa3_fwd_interface"  # a wheel without windows and without float16


class FlashAttention3(FlashPackage):
    """It packs a group of query heads by itself, where that pays. A launch that the device refuses
    ends the process, so no other generation is tried."""

    name = "flash_attn_3"
    modules = ("flash_attn_interface", _FORWARD_ONLY)
    function = "flash_attn_with_kvcache"
    arguments = (
        "cache_seqlens", "cache_batch_idx", "cache_leftpad", "softmax_scale", "softcap",
        "num_splits", "return_softmax_lse",
    )  # fmt: skip
    packages = "flash-attn-3 or fa3-fwd"
    majors = range(9, 10)

    def _prefix(
        self, query: Tensor, keys: Tensor, values: Tensor, call: TreeCall, rule: LayerRule
    ) -> Attended:
        cache, lengths = in_a_cache(keys, values, call, query.device)
        out, lse, *_ = self.installed.function(
            query.transpose(1, 2),
            *cache,
            **lengths,
            softmax_scale=rule.scaling,
            softcap=rule.softcap or 0.0,
            num_splits=0,  # by its own heuristic
            return_softmax_lse=True,
        )
        heads = (keys.shape[1], query.shape[1] // keys.shape[1])
        return Attended(out.unflatten(2, heads), lse.transpose(1, 2).unflatten(2, heads))

    def _dtypes(self) -> tuple[torch.dtype, ...]:
        return (torch.bfloat16,) if self.installed.module == _FORWARD_ONLY else HALVES
