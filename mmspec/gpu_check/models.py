"""Models of real sizes with random weights, made on the device: what they say means nothing, what a
step of theirs costs does."""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mmspec.gpu_check.setting import Setting
from mmspec.kv import KVCache
from mmspec.plan.shape import SHAPES, ModelShape
from mmspec.state import Placement
from mmspec.target import Target
from mmspec.target.stacking import stack_weights
from mmspec.training.enlargement import made_on

_ROOM = 512  # tokens behind the context, for trees
_ELEMENT_BYTES = 2
_SMALL = {"layers": 2, "head_dim": 16, "intermediate": 160, "vocab": 264}


def timed_shapes(setting: Setting) -> list[ModelShape]:
    """Llama-3-8B, the text tower of Qwen2.5-VL-7B, and Llama-2-7B, whose heads share no keys."""
    shapes = [SHAPES[name] for name in ("llama-3-8b", "qwen2.5-7b", "llama-2-7b")]
    return [small(shapes[1])] if setting.is_small else shapes


def small(shape: ModelShape) -> ModelShape:
    """As many query heads a KV head, and all else tiny."""
    heads = 2 * shape.group
    sizes = {**_SMALL, "heads": heads, "kv_heads": 2, "hidden": heads * 8}
    return replace(shape, name=f"{shape.name}, tiny", **sizes)


def random_model(shape: ModelShape, setting: Setting) -> PreTrainedModel:
    """A Llama of that shape, or a Qwen2 where the name says so."""
    sizes = {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": 2**18,
        "eos_token_id": None,
        "bos_token_id": None,
    }
    with made_on(setting.device, setting.dtype):
        torch.manual_seed(0)
        made: PreTrainedModel
        if shape.name.startswith("qwen"):
            made = Qwen2ForCausalLM(Qwen2Config(**sizes, head_dim=shape.head_dim))
        else:
            made = LlamaForCausalLM(LlamaConfig(**sizes, head_dim=shape.head_dim))
    made.generation_config.pad_token_id = 0
    return made.eval().requires_grad_(False)


def loaded_model(shape: ModelShape, setting: Setting) -> PreTrainedModel:
    """The same as if mmspec had loaded it: weights that are read together lie side by side."""
    made = random_model(shape, setting)
    stack_weights(made)
    return made


def filled_cache(
    target: Target, shape: ModelShape, context: int, *, watched_queries: int = 0
) -> tuple[KVCache, Placement]:
    """A cache whose one row holds `context` tokens of random keys and values, the same in each
    layer, without a prefill."""
    cache = target.new_cache(watched_queries=watched_queries)
    row = cache.open(context + _ROOM)
    size = (context, shape.kv_heads, shape.head_dim)
    states = [torch.randn(size, device=target.device, dtype=target.dtype) for _ in range(2)]
    pair: tuple[Tensor, Tensor] = (states[0], states[1])
    cache.append(row, (pair,) * shape.layers, count=context)
    return cache, Placement(row, (0,))


def step_bytes(model: PreTrainedModel, shape: ModelShape, context: int) -> float:
    """What one decoding step has to read: the matrices, the head, and the KV of one row."""
    element = model.dtype.itemsize
    weights = shape.layer_weights * shape.layers + shape.head_weights
    return element * (weights + shape.kv_values * shape.layers * context)


def stored_bytes(shape: ModelShape, context: int) -> float:
    """Memory of weights and of one row's KV."""
    weights = shape.layer_weights * shape.layers + 2 * shape.head_weights
    return _ELEMENT_BYTES * (weights + shape.kv_values * shape.layers * (context + _ROOM))
