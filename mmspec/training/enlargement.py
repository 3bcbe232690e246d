"""Enlargement: a larger model that says exactly what a small trained one says.

Speed at a large model's size with the acceptance of a trained one: the larger model reads all of
its weights, and what it computes with them is the small model's function.

    width    hidden states are padded with zeros. RMSNorm's mean is over more numbers then, so its
             weight is scaled by sqrt(old / new) and its epsilon by old / new
    layers   those behind the last have output projections of zeros: x + 0 = x
    heads    new ones are multiplied by zeros in o_proj; new MLP neurons in down_proj
    head_dim queries are scaled by sqrt(new / old) against attention's 1 / sqrt(head_dim), their new
             numbers are zero, and the rotary base is raised so that the old frequencies stay

Weights that nothing depends on are random: zeros are quicker to multiply on some GPUs. (Net2Net,
arXiv 1511.05641, grows a network that way to train it on.)
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmspec.errors import ModelError
from mmspec.training.sizes import Places, Sizes, places

_DECODERS = frozenset({"LlamaModel", "MistralModel", "Qwen2Model"})
_PROJECTORS = {"LlavaForConditionalGeneration": "multi_modal_projector.linear_2"}
_SPREADING_ROPES = frozenset({"default", "linear", "llama3"})  # a function of each frequency alone


@torch.no_grad()
def enlarge(
    model: PreTrainedModel,
    *,
    hidden_size: int | None = None,
    num_hidden_layers: int | None = None,
    num_attention_heads: int | None = None,
    num_key_value_heads: int | None = None,
    head_dim: int | None = None,
    intermediate_size: int | None = None,
    vocab_size: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A model of the same class with the text tower's sizes given, the others being the model's
    own, and equal logits up to rounding. `model` is not changed. The new one is made in `dtype` on
    `device` (None: the model's own), without a copy elsewhere.

    Takes Llama, Mistral and Qwen2 models, and LLaVA ones over such. New entries of a larger
    vocabulary repeat that of token 0: logits of the old ones stay, and greedy text too as long as
    that token does not begin it.

    Raises ModelError for other models, ConfigError for sizes that the model does not fit in.
    """
    _refuse_unknown(model)
    wanted = {
        "hidden_size": hidden_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads,
        "head_dim": head_dim,
        "intermediate_size": intermediate_size,
        "vocab_size": vocab_size,
    }
    small = Sizes.of(model.config.get_text_config(decoder=True))
    large = replace(small, **{name: size for name, size in wanted.items() if size is not None})
    where = places(small, large)
    dtype = dtype or model.dtype
    config = _enlarged_config(model, small, large, dtype)
    place = torch.device(device or model.device)
    devices = [place] if place.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), made_on(place, dtype):
        torch.manual_seed(seed)
        made = type(model)(config).eval()
    if model.can_generate():
        made.generation_config = copy.deepcopy(model.generation_config)
    _copy_outside(model, made)
    _copy_ends(model, made, small, large)
    for index, layer in enumerate(made.get_decoder().layers):
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
        if index < small.num_hidden_layers:
            _copy_layer(model.get_decoder().layers[index], layer, where, small, large)
    return made


def _refuse_unknown(model: PreTrainedModel) -> None:
    decoder = type(model.get_decoder()).__name__
    is_text = type(model.get_decoder()) is type(getattr(model, "model", None))
    if decoder not in _DECODERS or not (is_text or type(model).__name__ in _PROJECTORS):
        raise ModelError(
            f"{type(model).__name__} over {decoder}: expected a causal model over one of "
            f"{', '.join(sorted(_DECODERS))}, or {', '.join(_PROJECTORS)} over one"
        )


def _enlarged_config(model: PreTrainedModel, small: Sizes, large: Sizes, dtype: torch.dtype) -> Any:
    config = copy.deepcopy(model.config)
    for own in (config, *(getattr(config, name) for name in config.sub_configs)):
        own.dtype = dtype  # each part is made in its own
    text = config.get_text_config(decoder=True)
    for name, size in asdict(large).items():
        setattr(text, name, size)
    text.rms_norm_eps = text.rms_norm_eps * small.hidden_size / large.hidden_size
    kinds = getattr(text, "layer_types", None)
    if kinds:
        text.layer_types = [*kinds, *kinds[-1:] * (large.num_hidden_layers - len(kinds))]
    if large.head_dim != small.head_dim:
        rope = dict(text.rope_parameters)
        kind = rope.get("rope_type", "default")
        if kind not in _SPREADING_ROPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelError(
                f"rotary embedding {rope}: expected one of {', '.join(sorted(_SPREADING_ROPES))} "
                f"over whole heads, for another head_dim; leave it at {small.head_dim}"
            )
        rope["rope_theta"] = rope["rope_theta"] ** (large.head_dim / small.head_dim)
        text.rope_parameters = rope
    return config


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """New modules come into being there, and in that dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def _copy_outside(model: PreTrainedModel, made: PreTrainedModel) -> None:
    """What is not the text tower: encoders as they are, the projector padded with zeros."""
    projector = _PROJECTORS.get(type(model).__name__)
    if projector is None:
        return
    own = {id(p) for p in made.get_decoder().parameters()} | {id(made.lm_head.weight)}
    old = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in [*made.named_parameters(), *made.named_buffers()]:
        if id(tensor) not in own and "language_model" not in name:
            tensor.zero_()
            tensor[tuple(slice(size) for size in old[name].shape)] = old[name].to(tensor)


def _copy_ends(model: PreTrainedModel, made: PreTrainedModel, small: Sizes, large: Sizes) -> None:
    """Embedding, head, final norm and rotary frequencies."""
    tokens = torch.arange(large.vocab_size)
    tokens[small.vocab_size :] = 0
    embedding, head = made.get_input_embeddings().weight, made.get_output_embeddings().weight
    for new, old in (
        (head, model.get_output_embeddings().weight),
        (embedding, model.get_input_embeddings().weight),  # last: tied, it is the head too
    ):
        if new is embedding:
            new.zero_()
        new[:, : small.hidden_size] = old[tokens.to(old.device)].to(new)
    _copy_norm(model.get_decoder().norm, made.get_decoder().norm)
    # The raised base gives the same frequencies but for the last bits of a power in float32.
    old_rotary, rotary = model.get_decoder().rotary_emb, made.get_decoder().rotary_emb
    for name in ("inv_freq", "original_inv_freq"):
        frequencies = getattr(old_rotary, name)
        getattr(rotary, name)[: frequencies.shape[0]] = frequencies.to(rotary.inv_freq)


def _copy_norm(old: Any, new: Any) -> None:
    width = old.weight.shape[0]
    new.weight[:width] = (old.weight.double() * math.sqrt(width / new.weight.shape[0])).to(
        new.weight
    )


def _copy_layer(old: Any, new: Any, where: Places, small: Sizes, large: Sizes) -> None:
    """One trained block into a fresh one, whose output projections are zero."""
    _copy_norm(old.input_layernorm, new.input_layernorm)
    _copy_norm(old.post_attention_layernorm, new.post_attention_layernorm)
    attention, mlp = new.self_attn, new.mlp
    queries = attention.q_proj.weight.view(large.num_attention_heads, large.head_dim, -1)
    queries[where.query_heads.to(queries.device)] = 0  # the new numbers of a head that is read
    scale = math.sqrt(large.head_dim / small.head_dim)
    before = old.self_attn
    _put(before.q_proj, attention.q_proj, where.queries, where.hidden, scale=scale)
    for name in ("k_proj", "v_proj"):
        ours, theirs = getattr(before, name), getattr(attention, name)
        _put(ours, theirs, where.keys, where.hidden, of=where.keys_from)
    _put(before.o_proj, attention.o_proj, where.hidden, where.queries)
    _put(old.mlp.gate_proj, mlp.gate_proj, where.intermediate, where.hidden)
    _put(old.mlp.up_proj, mlp.up_proj, where.intermediate, where.hidden)
    _put(old.mlp.down_proj, mlp.down_proj, where.hidden, where.intermediate)


def _put(
    old: nn.Linear,
    new: nn.Linear,
    rows: Tensor,
    columns: Tensor,
    *,
    of: Tensor | None = None,
    scale: float = 1.0,
) -> None:
    """Row i of the old layer, or row of[i], becomes row rows[i] of the new one."""
    device = new.weight.device
    rows, columns = rows.to(device), columns.to(device)
    for name in ("weight", "bias"):
        values, target = getattr(old, name), getattr(new, name)
        if values is None:
            continue
        values = values if of is None else values[of.to(values.device)]
        values = (values.to(device).double() * scale).to(target.dtype)
        if name == "bias":
            target[rows] = values
        else:
            target[rows[:, None], columns] = values
