"""Forward: the seconds of one forward, by a roofline (Williams et al., 2009) over its two halves.

    weights      max(bytes of the matrices / bandwidth,  2 x weights x batch x nodes / product rate)
                 of a mixture of experts each matrix that one of the tokens chose, and products of
                 those that each did
  + attention    max(bytes of the KV       / bandwidth,  4 x heads x head_dim x keys x nodes / rate)
  + states       6 x bytes of a running state x batch x nodes / bandwidth

A node reads no KV of its own: the keys are read once for all nodes of a row and all query heads
that share them, and multiplied for each; so attention turns from one regime to the other where
nodes x group passes the machine's ratio of attention rate to bandwidth, about 100 on a H200.
"""

from dataclasses import dataclass, replace
from typing import Literal

from mmspec.plan.hardware import Hardware
from mmspec.plan.shape import ModelShape

_PASSES = 6  # over a node's state: copied from its parent's, changed, left; read and written

Precision = Literal["fp32", "bf16", "fp8", "int8", "int4"]
BYTES: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 4.5 / 8,  # with a scale and a zero point a group of 64
}


@dataclass(frozen=True)
class Forward:
    """A model on a machine. The head and the KV stay in `state`, whatever the layers are in."""

    shape: ModelShape
    hardware: Hardware
    weights: Precision = "bf16"
    state: Precision = "bf16"
    layer_share: float = 1.0  # of the layers that run
    has_int8_head: bool = False

    @property
    def weight_bytes(self) -> float:
        """Of the matrices that a forward of one token reads."""
        return self._read_bytes(1)

    @property
    def stored_bytes(self) -> float:
        """Of all weights, each expert's and the embeddings among them. Encoders of images and the
        like are not known here."""
        return self._read_bytes(float("inf")) + self.shape.looked_up * BYTES[self.state]

    def kv_bytes(self, tokens: int) -> float:
        """Of one row, that a forward reads."""
        return self._layers(tokens) * self.shape.kv_values * tokens * BYTES[self.state]

    def row_bytes(self, tokens: int, *, nodes: int = 0) -> float:
        """Of one row, that are kept: its KV, all of it in layers with a window too, once where
        layers share it, its running state, and those of `nodes` drafted ones."""
        shape = self.shape
        keeping = shape.layers - shape.keyless_layers - shape.shared_layers
        kept = keeping * shape.kv_values * tokens * BYTES[self.state]
        return (kept + (1 + nodes) * shape.state_bytes) * self.layer_share

    def seconds(self, nodes: int, *, context: int, batch: int) -> float:
        """One forward over `nodes` tokens of each of `batch` rows of `context` committed ones."""
        shape, hardware = self.shape, self.hardware
        rows, keys = batch * nodes, context + nodes
        multiplied = shape.layer_weights * shape.layers * self.layer_share + shape.head_weights
        matrices = max(
            self._read_bytes(rows) / hardware.bytes_per_s,
            2 * multiplied * rows / hardware.gemm_flops,
        )
        scores = 4 * self._layers(keys) * shape.heads * shape.head_dim * keys * rows
        attention = max(
            self.kv_bytes(keys) * batch / hardware.bytes_per_s, scores / hardware.attention_flops
        )
        states = _PASSES * shape.state_bytes * self.layer_share * rows / hardware.bytes_per_s
        return max(matrices + attention + states, hardware.host_s)

    def fits(self, *, context: int, batch: int, nodes: int = 0) -> bool:
        """Whether weights and rows with so many drafted nodes have room in the machine's memory,
        with a tenth to spare."""
        rows = batch * self.row_bytes(context, nodes=nodes)
        return self.stored_bytes + rows <= 0.9 * self.hardware.memory_bytes

    def of(self, shape: ModelShape) -> "Forward":
        """Another model on the same machine."""
        return replace(self, shape=shape)

    def _read_bytes(self, tokens: float) -> float:
        """Of the matrices, as if each of so many tokens chose its experts evenly."""
        shape = self.shape
        unread = shape.expert_weights * (1 - shape.expert_share) ** tokens
        used = shape.expert_weights * shape.expert_share
        layers = shape.layer_weights * shape.layers - used + shape.expert_weights - unread
        head = BYTES["int8" if self.has_int8_head else self.state]
        return layers * self.layer_share * BYTES[self.weights] + shape.head_weights * head

    def _layers(self, tokens: int) -> float:
        return self.shape.seen_layers(tokens) * self.layer_share
