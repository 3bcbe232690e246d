"""Linear biases (ALiBi): how far a key is from a query goes by its slot, a node's by its depth."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from mmspec.attention import RowNodes
from mmspec.target.masks import Masks
from mmspec.uploads import upload

_PREFIX = "mmspec_told_over_"
_TOLD: ContextVar[Tensor | None] = ContextVar("mmspec_mask", default=None)


class SlotBiases:
    """Of a model (Bloom) that makes its biases from a 2-D mask and adds masks of our own to them.

    The softmax over a query's keys is the same whatever is added to all of them, so a bias needs no
    query: the model adds `slope * slot` to a key. A node's slot is not its place in the text
    wherever siblings are before it; what is between the two goes into the mask, which then has a
    head dimension. In a chain, and in a prompt, there is nothing between them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._config = model.config.get_text_config(decoder=True)
        self._decoder = cast(Any, model.get_decoder())

    @staticmethod
    def of(model: PreTrainedModel) -> "SlotBiases | None":
        """None for a model without such biases."""
        decoder = model.get_decoder()
        return SlotBiases(model) if hasattr(decoder, "build_alibi_tensor") else None

    def by_depth(self, mask: Masks, rows: Sequence[RowNodes]) -> Tensor:
        """The additive mask (batch, 1, nodes, columns) with what makes the rows' biases go by
        their nodes' depths: (batch, heads, nodes, columns) where there is anything."""
        assert isinstance(mask, Tensor), "models with biases have one kind of layer"
        slots = torch.arange(mask.shape[-1])
        places = slots.repeat(len(rows), 1)  # (batch, columns)
        for own, row in zip(places, rows, strict=True):
            own[row.committed : row.num_columns] = row.committed + torch.from_numpy(row.depths)
        if bool((places == slots).all()):
            return mask
        # Asked of the model, so that they round as its own do.
        ones = torch.ones(1, mask.shape[-1], dtype=torch.long, device=mask.device)
        own = self._decoder.build_alibi_tensor(ones, self._decoder.num_heads, mask.dtype)
        biases = own[:, 0]  # (heads, columns)
        shift = biases[:, upload(places, mask.device)] - biases.unsqueeze(1)
        return mask + shift.transpose(0, 1).unsqueeze(2)

    @contextmanager
    def told(self, mask: Masks) -> Iterator[Tensor]:
        """Within it, one forward attends by the mask; yields the `attention_mask` that it makes its
        biases from. That is 2-D: the mask itself goes in where transformers asks for the mask of
        an attention of this name."""
        assert isinstance(mask, Tensor), "models with biases have one kind of layer"
        own = self._config._attn_implementation
        before = _TOLD.set(mask)
        self._config._attn_implementation_internal = _registered(own or "eager")
        try:
            yield mask.new_ones(mask.shape[0], mask.shape[-1], dtype=torch.long)
        finally:
            self._config._attn_implementation_internal = own
            _TOLD.reset(before)


def _registered(own: str) -> str:
    """The name under which transformers finds the told mask, in place of that of `own`."""
    name = f"{_PREFIX}{own}"
    if name not in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, partial(_mask, own))
    return name


def _mask(own: str, **asked: Any) -> Tensor | None:
    told = _TOLD.get()  # None in another thread: a forward of the user's own, meanwhile
    return ALL_MASK_ATTENTION_FUNCTIONS[own](**asked) if told is None else told
