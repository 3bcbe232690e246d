"""Block diffusion heads for tiny targets, as published and as transformers has them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import MuseGlimmerAssistantConfig, MuseGlimmerAssistantModel

from mmspec.drafters.dflash import DFlashConfig, DFlashHead, load

BLOCK, MASK = 6, 2
LAYERS = (0, 1)  # of the target, whose states come out of them


def published(model: Any, **changes: Any) -> dict[str, Any]:
    """A config.json as z-lab writes it."""
    text = model.config.get_text_config()
    shape = {
        "architectures": ["DFlashDraftModel"],
        "model_type": "qwen3",
        "hidden_size": text.hidden_size,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_hidden_layers": 2,
        "vocab_size": text.vocab_size,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 512,
        "block_size": BLOCK,
        "dflash_config": {"mask_token_id": MASK, "target_layer_ids": list(LAYERS)},
    }
    return shape | changes


def unfitted(model: Any, *, seed: int = 4, **changes: Any) -> DFlashHead:
    """A head of random weights."""
    torch.manual_seed(seed)
    head = DFlashHead(DFlashConfig.read(published(model, **changes), who="a test"))
    return head.to(model.dtype).requires_grad_(False).eval()


def assistant(model: Any, *, block: int = BLOCK, **changes: Any) -> MuseGlimmerAssistantModel:
    """transformers' own, of random weights."""
    text = model.config.get_text_config()
    options = {
        "hidden_size": text.hidden_size,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "sliding_window": 512,
        "block_size": block,
        "mask_token_id": MASK,
        "target_layer_ids": list(LAYERS),
    }
    torch.manual_seed(6)
    config = MuseGlimmerAssistantConfig(**(options | changes))
    made = MuseGlimmerAssistantModel(config).to(model.dtype).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.2)
    return made


def loaded(made: MuseGlimmerAssistantModel, folder: Path) -> DFlashHead:
    """The same, by the folder that transformers writes."""
    made.save_pretrained(folder)
    return load(folder)


def context_of(states: Any) -> Tensor:
    """The target's hidden states side by side, as a head reads them."""
    return torch.cat([states[layer + 1] for layer in LAYERS], dim=-1)


def knowing(model: Any, given: Sequence[Sequence[int]], folder: Path) -> DFlashHead:
    """One that has learnt texts of one length, in a few seconds of training."""
    texts = torch.tensor(given)
    with torch.no_grad():
        states = model(texts, output_hidden_states=True).hidden_states
    block, made = 8, assistant(model, block=8)
    embedding, lm_head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    context, draw = context_of(states), torch.Generator().manual_seed(1)
    for _ in range(200):
        known = int(torch.randint(5, texts.shape[1] - block, (), generator=draw))
        ids = torch.full((texts.shape[0], block), MASK)
        ids[:, 0] = texts[:, known]
        output = made(noise_embeds=embedding[ids], context_hidden_states=context[:, :known])
        logits = output.last_hidden_state[:, 1:] @ lm_head.T
        goal = texts[:, known + 1 : known + block]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), goal.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loaded(made, folder)


def write(head: DFlashHead, folder: Path, config: dict[str, Any], **names: str) -> Path:
    """A published folder; `names`: other names of its tensors."""
    folder.mkdir(exist_ok=True)
    stored = {names.get(name, name): tensor for name, tensor in head.state_dict().items()}
    save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder
