"""Tree attention as transformers calls it: a name in its AttentionInterface, attached to a text
config for the time of one forward."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mmspec.attention.call import TreeCall
from mmspec.attention.chunk import ChunkCall
from mmspec.attention.reach import Reach
from mmspec.attention.rung import LayerRule
from mmspec.attention.tree import tree_attention
from mmspec.errors import ModelError
from mmspec.kv import QueryTap

KEYWORD = "tree_call"  # of model.forward; it arrives in every layer's attention
TAP_KEYWORD = "query_tap"  # of any forward of the model: who is told its queries
_PREFIX = "mmspec_over_"
# Softcap and sinks go into the LayerRule; the others are without meaning for a score call.
_UNDERSTOOD = frozenset(
    {
        "softcap",
        "s_aux",
        "cache_position",
        "is_causal",
        "logits_to_keep",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "use_cache",
    }
)

Output = tuple[Tensor, Tensor | None]


@contextmanager
def attached(config: PreTrainedConfig) -> Iterator[None]:
    """Within it, the layers of this text config attend by `tree_attention` in every forward that
    is given a TreeCall or a ChunkCall; any other attends as it did before. Whatever the forward, a
    QueryTap in it is told the queries.

    Sets one attribute of the config (microseconds), and puts it back after an error too.
    """
    own = config._attn_implementation
    config._attn_implementation_internal = _registered(own)
    try:
        yield
    finally:
        config._attn_implementation_internal = own


def _registered(own: str | None) -> str:
    """The name under which transformers finds tree attention on top of the model's `own`."""
    if own is not None and own.startswith(_PREFIX):
        return own  # attached already
    name = f"{_PREFIX}{own or 'eager'}"
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, partial(_attend, own or "eager"))
        if own in ALL_MASK_ATTENTION_FUNCTIONS:  # for a forward of the user's own, meanwhile
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[own])
    return name


def _attend(
    own: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> Output:
    """`query` (batch, heads, nodes, head_dim); `key` and `value` (batch, kv_heads, nodes,
    head_dim) are the new tokens' alone, written to the cache already."""
    call: TreeCall | ChunkCall | None = kwargs.pop(KEYWORD, None)
    tap: QueryTap | None = kwargs.pop(TAP_KEYWORD, None)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    if tap is not None:
        tap.take(cast(int, module.layer_idx), query, factor)
    if call is not None and call.layers[cast(int, module.layer_idx)].keeps_tokens:
        index = cast(int, module.layer_idx)
        reach = call.reaches[index]
        if not dropout and _is_understood(reach, query, key, kwargs):
            rule = LayerRule(reach, factor, kwargs.get("softcap"), kwargs.get("s_aux"))
            home = call.homes.of(index, key)
            return attend_layer(query, call, home, rule).contiguous(), None
        if isinstance(call, TreeCall) and call.paths is not None:
            raise ModelError(
                f"{type(module).__name__} of layer {index} asks its attention for more than "
                "mmspec's does; decode.exactness=bitwise is not possible here, standard is"
            )
        call.num_attended += 1
        layer = call.layers[call.homes.of(index, key)]
        key, value = layer.view(layer.keys), layer.view(layer.values)
        attention_mask = call.dense_mask(reach, query)
    own_attention = _own_attention(own, module)
    options = {"scaling": scaling, "dropout": dropout, **kwargs}
    return own_attention(module, query, key, value, attention_mask, **options)


def attend_layer(query: Tensor, call: TreeCall | ChunkCall, index: int, rule: LayerRule) -> Tensor:
    """`tree_attention` over what the cache holds of layer `index`."""
    call.num_attended += 1
    layer = call.layers[index]
    if isinstance(call, ChunkCall):
        return call.attend(query, layer.keys, layer.values, rule=rule)
    return tree_attention(query, layer.keys, layer.values, call=call, rule=rule)


def _is_understood(reach: Reach, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the layer asks for nothing but what a LayerRule says."""
    for name, value in kwargs.items():
        if name == "sliding_window":
            if value != reach.window:
                return False
        elif value is not None and value is not False and name not in _UNDERSTOOD:
            return False
    return query.shape[1] % key.shape[1] == 0 and query.shape[3] == key.shape[3]


def _own_attention(own: str, module: nn.Module) -> Callable[..., Output]:
    if own in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[own]
    # Eager attention is no entry of the interface: each modeling file has its own.
    return sys.modules[type(module).__module__].eager_attention_forward
