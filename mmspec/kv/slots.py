"""WriteSlots: where a forward writes its tokens, told by tensors on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmspec.kernels import Kernels

KERNELS = Kernels("mmspec.kv.kernels", "writes to the KV cache")


def has_kernels(device_type: str) -> bool:
    """Whether writes and commits on such a device are Triton kernels."""
    return device_type == "cuda" and KERNELS.on(device_type) is not None


@dataclass(frozen=True)
class WriteSlots:
    """Node n of row i goes to slot first[i] + n, if n < counts[i]. A captured forward reads these
    tensors anew each time that it is replayed."""

    first: Tensor  # (batch,) int64
    counts: Tensor  # (batch,) int64; 0 for a row that is only padding, never the first one

    def on(self, device: torch.device) -> "WriteSlots":
        """The same on another device; themselves where they lie there already."""
        return WriteSlots(self.first.to(device), self.counts.to(device))

    def write(self, keys: Tensor, values: Tensor, key_states: Tensor, value_states: Tensor) -> None:
        """Writes states (batch, kv_heads, nodes, head_dim) into a layer's flat buffers (slots,
        kv_heads, head_dim). Nothing in it depends on the values of the tensors but their
        contents."""
        if has_kernels(keys.device.type):
            from mmspec.kv import kernels

            slots = {"first": self.first, "counts": self.counts}
            with KERNELS.or_else(keys.device):
                kernels.write(keys, values, key_states, value_states, **slots)
                return
        source, destination = self._indices(key_states.shape[2])
        for buffer, states in ((keys, key_states), (values, value_states)):
            tokens_first = states.transpose(1, 2).flatten(0, 1)
            buffer.index_copy_(0, destination, tokens_first.index_select(0, source))

    def _indices(self, nodes: int) -> tuple[Tensor, Tensor]:
        """(source, destination), each (batch * nodes,). Padding has to go somewhere: there it is
        the first node once more."""
        node = torch.arange(nodes, device=self.first.device)
        is_real = node < self.counts.unsqueeze(1)
        places = torch.arange(is_real.numel(), device=node.device).view_as(is_real)
        source = places * is_real
        destination = torch.where(is_real, self.first.unsqueeze(1) + node, self.first[0])
        return source.flatten(), destination.flatten()
