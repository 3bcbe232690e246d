"""FlashAttention 4 (the package `flash_attn.cute`) for the prefix, on Hopper and Blackwell; the
tail is merged behind it.

A mask of its own (`mask_mod`) would take the tail along, but is compiled into the kernel, and keeps
it from the ways that are quick for few queries.
"""

from torch import Tensor

from mmspec.attention.call import TreeCall
from mmspec.attention.flash_package import FlashPackage
from mmspec.attention.rows import Attended
from mmspec.attention.rung import LayerRule
from mmspec.attention.triton_tree import on_device

_HOPPER = 9
_SPLITTING = (10, 11)  # compute capabilities where it shares the keys of a row out


class FlashAttention4(FlashPackage):
    """Rows are pieces of the cache's buffer, which begin and end where the device says."""

    name = "flash_attn_4"
    modules = ("flash_attn.cute",)
    function = "flash_attn_varlen_func"
    arguments = (
        "cu_seqlens_k", "seqused_k", "max_seqlen_k", "softmax_scale", "softcap", "num_splits",
        "return_lse",
    )  # fmt: skip
    packages = "flash-attn-4"
    majors = range(_HOPPER, 100)

    def can_attend(self, query: Tensor, keys: Tensor, values: Tensor, *, rule: LayerRule) -> bool:
        suits = super().can_attend(query, keys, values, rule=rule)
        return suits and (keys.shape[2] <= 128 or self._major(query.device) == _HOPPER)

    def _prefix(
        self, query: Tensor, keys: Tensor, values: Tensor, call: TreeCall, rule: LayerRule
    ) -> Attended:
        options: dict[str, object] = {}
        if call.is_single:  # no lengths at all: the row's prefix is what it is given
            keys, values = (call.rows[0].prefix_of(t).unsqueeze(0) for t in (keys, values))
        else:
            options["cu_seqlens_k"] = call.prefixes(query.device).bounds
            options["seqused_k"] = call.tensors(query.device).committed
            options["max_seqlen_k"] = call.max_columns
        with on_device(query.device):
            out, lse = self.installed.function(
                query.transpose(1, 2),
                keys,
                values,
                **options,
                softmax_scale=rule.scaling,
                softcap=rule.softcap or 0.0,
                # 0: by its heuristic, which knows no Hopper and would be refused there
                num_splits=0 if self._major(query.device) in _SPLITTING else 1,
                return_lse=True,
            )
        heads = (keys.shape[-2], query.shape[1] // keys.shape[-2])
        return Attended(out.unflatten(2, heads), lse.transpose(1, 2).unflatten(2, heads))
