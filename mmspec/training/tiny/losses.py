"""What training minimises: next tokens, where guided heads look, and what patches show."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from mmspec.training.tiny.batch import IGNORED, JUMP_WEIGHT, Batch
from mmspec.training.tiny.data import NOWHERE
from mmspec.training.tiny.forward import forward
from mmspec.training.tiny.page import COLOURS, GRID, NOT_TEXT, SHAPES

CHARACTER_OFFSETS = (0, 1, -1, -2, -3, -4, -5, -6)  # relative to a patch's first character
NUM_CHARACTERS = NOT_TEXT + 1
NUM_SHAPES = 1 + len(COLOURS) * len(SHAPES)


class PatchHeads(nn.Module):
    """Linear read-outs of the projector's output, thrown away after training.

    Beside its own two characters a patch must know the six left of it, which make it findable by
    what was just written.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.characters = nn.Linear(hidden, len(CHARACTER_OFFSETS) * NUM_CHARACTERS)
        self.shape = nn.Linear(hidden, NUM_SHAPES)
        self.row = nn.Linear(hidden, GRID)
        self.column = nn.Linear(hidden, GRID)

    def loss(self, patches: Tensor, characters: Tensor, shapes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy, and the share of non-blank patches with both characters right."""
        batch = patches.shape[0]
        padded = F.pad(characters, (6, 0))  # (batch, lines, 6 + columns)
        first = torch.arange(GRID, device=patches.device) * 2 + 6
        truth = torch.stack([padded[:, :, first + o] for o in CHARACTER_OFFSETS], dim=-1)
        truth = truth.reshape(batch, GRID * GRID, -1)  # (batch, patches, offsets)
        logits = self.characters(patches).unflatten(-1, (-1, NUM_CHARACTERS))
        weight = torch.where(truth == 0, 0.15, 1.0)
        each = F.cross_entropy(logits.flatten(0, 2).float(), truth.flatten(), reduction="none")
        loss = 2 * (each * weight.flatten()).sum() / weight.sum()
        shape_truth = shapes.flatten()
        shape_weight = torch.where(shape_truth == 0, 0.05, 1.0)
        shape_logits = self.shape(patches).flatten(0, 1).float()
        each = F.cross_entropy(shape_logits, shape_truth, reduction="none")
        loss = loss + (each * shape_weight).sum() / shape_weight.sum()
        place = torch.arange(GRID * GRID, device=patches.device).repeat(batch)
        for head, truth_of in ((self.row, place // GRID), (self.column, place % GRID)):
            logits_place = head(patches).flatten(0, 1).float()
            loss = loss + 0.5 * F.cross_entropy(logits_place, truth_of)
        hits = (logits[:, :, :2].argmax(-1) == truth[:, :, :2]).all(-1)
        filled = (truth[:, :, 0] != 0) & (truth[:, :, 0] != NOT_TEXT)
        return loss, (hits & filled).sum() / filled.sum().clamp(min=1)


@dataclass(frozen=True)
class Losses:
    """One batch's loss and what a progress line shows of it."""

    total: Tensor
    answer: float  # mean cross-entropy of the answer's tokens
    error: float  # share of the answer's tokens that are not the most likely one
    pointer: float  # share of text pointers that are right, NaN without any


def pointer_loss(logits: Tensor, truth: Tensor, weights: Tensor) -> tuple[Tensor, float]:
    """Cross-entropy of a head's attention logits against the place it should look at."""
    chosen = truth != NOWHERE
    if not chosen.any():
        return logits.new_zeros(()), float("nan")
    picked, place, weight = logits[chosen], truth[chosen], weights[chosen]
    each = F.cross_entropy(picked, place, reduction="none")
    weight = torch.where(weight == JUMP_WEIGHT, 5.0, 1.0)
    right = (picked.argmax(-1) == place).float().mean().item()
    return (each * weight).sum() / weight.sum(), right


def guided_heads(num_layers: int) -> dict[str, tuple[tuple[int, int], ...]]:
    """Which (layer, head) must look where: the last two layers, but never the first."""
    if num_layers == 2:
        return {"next_text": ((1, 0),), "this_patch": (), "next_patch": ((1, 2),)}
    return {
        "next_text": ((num_layers - 2, 0), (num_layers - 1, 0)),
        "this_patch": ((num_layers - 2, 2),),
        "next_patch": ((num_layers - 2, 3), (num_layers - 1, 2)),
    }


def compute(
    model: LlavaForConditionalGeneration, heads: PatchHeads | None, batch: Batch, *, guidance: float
) -> Losses:
    """All losses of one batch, weighted as they were found to work. Without `heads` nobody asks
    what patches show."""
    guided = guided_heads(model.config.text_config.num_hidden_layers)
    wanted = {
        name: places
        for name, places in guided.items()
        if guidance and (getattr(batch, name) != NOWHERE).any()
    }
    chosen = frozenset(place for places in wanted.values() for place in places)
    outputs = forward(
        model,
        batch.token_ids,
        batch.positions,
        pixel_values=batch.pixel_values,
        start=batch.start,
        guided=chosen,
    )
    asked = batch.targets != IGNORED
    logits = model.lm_head(outputs.hidden)[asked].float()
    targets, weights = batch.targets[asked], batch.weights[asked]
    each = F.cross_entropy(logits, targets, reduction="none")
    total = (each * weights).sum() / weights.sum()
    right = float("nan")
    for name, places in wanted.items():
        for place in places:
            loss, share = pointer_loss(outputs.pointers[place], getattr(batch, name), batch.weights)
            total = total + guidance * loss
            if name == "next_text":
                right = share
    patches, characters, shapes = outputs.patches, batch.characters, batch.shapes
    if heads is not None and not (patches is None or characters is None or shapes is None):
        total = total + 0.3 * heads.loss(patches, characters, shapes)[0]
    error = (logits.argmax(-1) != targets).float().mean().item()
    return Losses(total, each.mean().item(), error, right)
