"""A Prompt as transformers' own forward and generate take it."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.state import Prompt


def native_inputs(model: PreTrainedModel, prompt: Prompt) -> dict[str, Tensor]:
    """Keyword arguments for a batch of one, on the model's device, pixels in its dtype."""
    ids = prompt.token_ids.unsqueeze(0).to(model.device)
    inputs = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in prompt.model_inputs.items()
    }
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **inputs}
