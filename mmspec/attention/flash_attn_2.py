"""FlashAttention 2 (arXiv 2307.08691) for the prefix; the tail is merged behind it."""

from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.flash_package import FlashPackage, in_a_cache
from mmspec.attention.rows import Attended
from mmspec.attention.rung import LayerRule


class FlashAttention2(FlashPackage):
    """It packs a group of query heads for one token alone, so they are folded into the token axis:
    each key is read once for all nodes and heads."""

    name = "flash_attn_2"
    modules = ("flash_attn",)
    function = "flash_attn_with_kvcache"
    arguments = (
        "cache_seqlens", "cache_batch_idx", "cache_leftpad", "softmax_scale", "softcap",
        "num_splits", "return_softmax_lse",
    )  # fmt: skip
    packages = "flash-attn>=2.6.1"
    majors = range(8, 100)

    def _prefix(
        self, query: Tensor, keys: Tensor, values: Tensor, call: TreeCall, rule: LayerRule
    ) -> Attended:
        cache, lengths = in_a_cache(keys, values, call, query.device)
        nodes = query.shape[2]
        out, lse = self.installed.function(
            _folded(query, keys.shape[1]),
            *cache,
            **lengths,
            softmax_scale=rule.scaling,
            softcap=rule.softcap or 0.0,
            num_splits=0,  # by its own heuristic
            return_softmax_lse=True,
        )
        return Attended(
            out.unflatten(1, (nodes, -1)).transpose(2, 3),
            lse.unflatten(2, (nodes, -1)).transpose(1, 2),
        )


def _folded(query: Tensor, kv_heads: int) -> Tensor:
    """(batch, nodes * group, kv_heads, head_dim), a node's heads together."""
    return query.unflatten(1, (kv_heads, -1)).permute(0, 3, 2, 1, 4).flatten(1, 2)
