"""A model read with more positions than it was made for."""

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmspec.target.load import load_model, load_processor, resolve_path


def load_for_context(
    path: str, context: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, bool]:
    """(model in float32, tokenizer, whether its positions were scaled): beyond the context that it
    was made for, by YaRN (arXiv 2309.00071)."""
    folder = resolve_path(path)
    model = load_model(folder, dtype="float32")
    processor = load_processor(folder)
    tokenizer = getattr(processor, "tokenizer", processor)
    known = model.config.get_text_config().max_position_embeddings
    if context <= known:
        return model, tokenizer, False
    scaling = {
        "rope_type": "yarn",
        "factor": context / known,
        "original_max_position_embeddings": known,
    }
    config = transformers.AutoConfig.from_pretrained(folder)
    config.rope_parameters = {**config.rope_parameters, **scaling}
    config.max_position_embeddings = context
    scaled = transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32
    )
    return scaled.eval(), tokenizer, True
