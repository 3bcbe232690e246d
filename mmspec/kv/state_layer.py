"""StateLayer: a layer's running states as a transformers cache layer, of one forward at a time.

Beside keys and values, or in place of them, such a layer keeps a sum of all tokens before (gated
delta nets, Mamba) and the newest inputs of a short convolution.
"""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from mmspec.kv.layer import FlatLayer


class StateKey(NamedTuple):
    """Which state: a layer may keep several of each kind."""

    layer: int
    kind: Literal["conv", "recurrent"]
    number: int


class StateKind(NamedTuple):
    """What a layer keeps."""

    num_states: int = 1  # of each kind, at most
    has_keys: bool = False  # keys and values too: attention beside the mixer


class StateLayer(LinearAttentionCacheLayerMixin):
    """Shows a forward the states that were `loaded` and takes those that it leaves. What it is
    given to load may be written to: never what anybody keeps."""

    is_compileable = False

    def __init__(self, num_states: int) -> None:
        super().__init__(number_of_states=num_states)
        self.written: set[tuple[Literal["conv", "recurrent"], int]] = set()  # since the last load

    def load(self, layer: int, tensors: dict[StateKey, Tensor]) -> None:
        """The states (rows, ...) of this layer that are in `tensors`, and no others."""
        self.written.clear()
        for index in range(self.number_of_states):
            conv = tensors.get(StateKey(layer, "conv", index))
            recurrent = tensors.get(StateKey(layer, "recurrent", index))
            self.conv_states[index], self.recurrent_states[index] = conv, recurrent
            self.is_conv_states_initialized[index] = conv is not None
            self.is_recurrent_states_initialized[index] = recurrent is not None
            self.has_previous_state[index] = conv is not None or recurrent is not None

    def taken(self, layer: int) -> dict[StateKey, Tensor]:
        """The states as the forward left them; the layer shows none from now on."""
        found: dict[StateKey, Tensor] = {}
        for index in range(self.number_of_states):
            conv, recurrent = self.conv_states[index], self.recurrent_states[index]
            if conv is not None:
                found[StateKey(layer, "conv", index)] = conv
            if recurrent is not None:
                found[StateKey(layer, "recurrent", index)] = recurrent
        self.load(layer, {})
        return found

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is allocated ahead."""

    def update_conv_state(
        self,
        conv_states: Tensor,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Keeps the newest inputs (rows, channels, kernel) and returns all that the convolution
        sees: those before, and `conv_states` (rows, channels, tokens)."""
        self.written.add(("conv", state_idx))
        before = self.conv_states[state_idx]
        if before is not None:
            size, seen = before.shape[-1], torch.cat([before, conv_states], dim=-1)
        else:
            size = conv_kernel_size or conv_states.shape[-1]
            seen = F.pad(conv_states, (max(size - conv_states.shape[-1], 0), 0))
        self.conv_states[state_idx] = seen[..., -size:].clone()  # not all that was seen
        self.is_conv_states_initialized[state_idx] = True
        self.has_previous_state[state_idx] = True
        return seen

    def update_recurrent_state(
        self, recurrent_states: Tensor, state_idx: int = 0, **kwargs: object
    ) -> Tensor:
        """Keeps (rows, ...) and returns it."""
        self.written.add(("recurrent", state_idx))
        self.recurrent_states[state_idx] = recurrent_states
        self.is_recurrent_states_initialized[state_idx] = True
        return recurrent_states


class FlatStateLayer(FlatLayer, StateLayer):
    """Of a layer that attends and keeps a state."""

    def __init__(self, num_states: int) -> None:
        FlatLayer.__init__(self)
        StateLayer.__init__(self, num_states)
