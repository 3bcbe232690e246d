"""Cross-attention to images: what a prompt's tokens see of them, and what a forward is told.

A model of this kind (Llama 3.2 Vision) reads images beside the text. A token may look at any of
their cells, the tiles that the images were cut into; which ones, the processor's
`cross_attention_mask` says. A token that may look at none still attends, to all of them: so the
keys of a text depend on every image of its prompt, those behind it too.
"""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from mmspec.encoders.features import FeatureSource
from mmspec.encoders.media import CROSS_MASK, Media, join
from mmspec.encoders.outputs import Features, Form
from mmspec.errors import InputError
from mmspec.kv import WritePlan
from mmspec.state import Prompt

_STATES = "cross_attention_states"  # of images that were encoded already


def cross_layers(config: PreTrainedConfig) -> tuple[int, ...]:
    """The text model's layers that attend to images instead of tokens, by index."""
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "cross_attention_layers", None) or ()
    return tuple(index for index in layers if index < text.num_hidden_layers)


def sights(prompt: Prompt) -> Tensor | None:
    """(seq, cells) bool: which cells each token of the prompt sees; None where it has no images.

    Raises InputError where there is no mask (what the model then does depends on its attention),
    for a mask of another prompt, and for one that hides all images from the last token.
    """
    inputs = prompt.model_inputs
    if "pixel_values" not in inputs and _STATES not in inputs:
        return None
    mask = inputs.get(CROSS_MASK)
    seen = torch.zeros(1, 0) if mask is None else mask[0].flatten(1).bool().cpu()
    if mask is None or mask.shape[0] != 1 or len(seen) != prompt.num_tokens or not seen[-1].any():
        shape = "no" if mask is None else f"a {tuple(mask.shape)}"
        raise InputError(
            f"got {shape} {CROSS_MASK} for a prompt of {prompt.num_tokens} tokens, whose last one "
            f"sees {int(seen[-1].sum())} tiles of its images; expected (1, tokens, images, tiles) "
            "with a tile for the last token, as the model's processor makes it"
        )
    return seen


def sight_keys(prompt: Prompt, media: Media) -> list[Hashable]:
    """A key a token of what its keys and values depend on beside the text: the digests of all the
    images, and which cells it sees. Empty for a prompt without images."""
    seen = sights(prompt)
    if seen is None:
        return []
    digests = tuple(item.digest for items in media.items.values() for item in items)
    return [(digests, row.numpy().tobytes()) for row in seen]


@contextmanager
def inputs_of(
    model: PreTrainedModel,
    prompt: Prompt,
    features: FeatureSource | None,
    *,
    seen: Tensor,
    is_first: bool,
) -> Iterator[dict[str, Tensor]]:
    """Within it, one forward reads a part of the prompt with the inputs that it yields. The tokens
    up to its end see what `seen` (tokens, cells) says, on the model's device. The first forward of
    a row, `is_first`, reads all its images, whatever of the text it begins with."""
    inputs = dict(prompt.model_inputs) if is_first else {}
    # Of the tokens before its own the model looks at none.
    inputs[CROSS_MASK] = seen[None, :, None].long()
    with _encoded_once(model, inputs, features) as told:
        yield told


@contextmanager
def _encoded_once(
    model: PreTrainedModel, inputs: dict[str, Tensor], features: FeatureSource | None
) -> Iterator[dict[str, Tensor]]:
    """The inputs without the images that `features` knows. What the forward's encoder says of the
    others, it keeps; the decoder is handed all of them in their order."""
    items = () if features is None else features.media.items.get("image", ())
    if features is None or not items or "pixel_values" not in inputs:
        yield inputs
        return
    found = [features.find(item) for item in items]
    known = [one.rows[0] for one in found if one is not None]
    new = [item for item, one in zip(items, found, strict=True) if one is None]
    others = {name: value for name, value in inputs.items() if name not in items[0].tensors}
    if not new:
        yield {**others, _STATES: torch.cat(known)}
        return
    features.num_encoded += len(new)
    told: list[Tensor] = []  # (cells, patches, hidden) of the new ones

    def fill(decoder: object, given: object, named: Mapping[str, object]) -> object:
        states = named.get(_STATES)
        if not isinstance(states, Tensor):
            return None
        told.append(states)
        if not known:
            return None
        before, fresh = iter(known), iter(states.chunk(len(new)))
        every = [next(fresh) if one is None else next(before) for one in found]
        return given, {**named, _STATES: torch.cat(every)}

    hook = model.get_decoder().register_forward_pre_hook(fill, with_kwargs=True)
    try:
        yield {**others, **join(new)} if known else inputs
    finally:
        hook.remove()
    if told and len(told[0]) % len(new) == 0:
        form = Form(BaseModelOutput, told[0].ndim, (False, False), has_deeper=False)
        for item, states in zip(new, told[0].chunk(len(new)), strict=True):
            features.keep(item, Features((states.detach().clone(),), form))


def told_to_nodes(seen: Tensor, plan: WritePlan) -> Tensor:
    """The `cross_attention_mask` of a score call, (batch, columns, 1, cells): a row's new tokens
    all see what its newest one does, (batch, cells) bool."""
    columns = max(plan.lengths) + plan.max_count  # as many as the model takes for read, and its own
    return seen[:, None, None].long().expand(-1, columns, -1, -1)


def probe_inputs(model: PreTrainedModel, num_tokens: int) -> dict[str, Tensor]:
    """An image of noise, encoded, beside a prompt of so many tokens: of its two tiles the first
    tokens see none, the others one. Empty for a model that reads none beside the tokens."""
    vision = getattr(model.config, "vision_config", None)
    if not cross_layers(model.config) or vision is None:
        return {}
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    hidden = model.config.get_text_config(decoder=True).hidden_size
    noise = torch.randn(2, patches, hidden, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, num_tokens, 1, 2, dtype=torch.long)
    mask[:, num_tokens // 4 :, :, 0] = 1
    return {_STATES: noise.to(model.dtype), CROSS_MASK: mask}


def beside_text(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs of the model's own forward of one token more, given those of the one before."""
    mask = inputs.get(CROSS_MASK)
    return {} if mask is None else {CROSS_MASK: torch.cat([mask, mask[:, -1:]], dim=1)}
