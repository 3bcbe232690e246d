"""EAGLE-1 and EAGLE-2 heads, which differ in the tree alone (arXiv 2401.15077, section 3.2)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mmspec.drafters.eagle import EagleHead, EagleHeadConfig
from mmspec.drafters.eagle.checkpoint import save
from mmspec.drafters.heads import BlockConfig, TargetEnds
from mmspec.errors import ConfigError
from mmspec.target import Target
from mmspec.training.heads.batch import Batch, shifted
from mmspec.training.heads.method import Losses, as_stored, on_device
from mmspec.training.heads.soft import soft_cross_entropy, summed_over_tokens
from mmspec.training.heads.unrolled import embedded, unrolled


class EagleMethod:
    """The head says the target's next state f_(i+1) from f_i and the token behind it:

        L = SmoothL1(f, f^) + w CE(softmax(head(f)), softmax(head(f^)))    (w = 0.1)

    with noise from U(-noise, noise) on the states that it reads, so that it bears its own errors.
    """

    kv_layer: int | None = None
    rate = 1e-4

    def __init__(
        self,
        target: Target,
        *,
        noise: float = 0.1,
        token_weight: float = 0.1,
        depth: int = 5,
        layers: int = 1,
    ) -> None:
        """Raises ConfigError."""
        if noise < 0 or token_weight < 0 or depth < 1 or layers < 1:
            raise ConfigError(
                f"train.eagle: noise={noise}, token_weight={token_weight}, depth={depth}, "
                f"layers={layers}: expected 0 or more of the first two, 1 or more of the others"
            )
        text = target.model.config.get_text_config(decoder=True)
        block = BlockConfig.of_target(text, num_layers=layers)
        config = EagleHeadConfig(
            version=1,
            block=block,
            draft_vocab_size=block.vocab_size,
            target_hidden_size=block.hidden_size,
            has_embedding=False,
            has_head=False,
            fc_bias=True,
        )
        self._ends = TargetEnds(target)
        self.module = EagleHead(config).to(self._ends.device, torch.float32)
        self.taps = frozenset([target.last_tap])
        self.depth = depth
        self._tap = target.last_tap
        self._noise = noise
        self._token_weight = token_weight

    def loss(self, batch: Batch, generator: torch.Generator) -> Losses:
        """Means over the places whose draft is learned: of token s + 2 at place s."""
        features = batch.hidden[self._tap].float()
        drawn = torch.rand(
            features.shape, generator=on_device(generator, features.device), device=features.device
        )
        noisy = features + (2 * drawn - 1) * self._noise
        said = self.module(embedded(self._ends, batch, 1), noisy)
        _, learned = batch.ahead(2)
        count = batch.num_learned(2)
        wanted = shifted(features, 1)[learned]
        state_loss = F.smooth_l1_loss(said.features[learned].float(), wanted, reduction="none")
        state_loss = state_loss.mean(-1).sum() / count

        def of_tokens(read: Tensor, wanted: Tensor) -> Tensor:
            return soft_cross_entropy(self._ends.logits(read), self._ends.logits(wanted)).sum()

        token_loss = summed_over_tokens(of_tokens, said.read[learned], wanted) / count
        total = state_loss + self._token_weight * token_loss
        return Losses(total, {"states": state_loss.detach(), "tokens": token_loss.detach()})

    def drafts(self, batch: Batch, *, top_k: int) -> Tensor:
        """Of chains in which the head reads its own states."""
        features = batch.hidden[self._tap].float()
        steps = unrolled(self.module, self._ends, batch, features, steps=self.depth)
        return torch.stack([self._ends.logits(said.read).topk(top_k).indices for said in steps])

    def save(self, folder: Path, *, dtype: torch.dtype) -> None:
        save(as_stored(self.module, dtype), folder)
