"""EAGLE-3 heads, trained by the training-time test (arXiv 2503.01840, section 3)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmspec.drafters.eagle import EagleHead, EagleHeadConfig
from mmspec.drafters.eagle.checkpoint import save
from mmspec.drafters.eagle.module import HeadStates
from mmspec.drafters.heads import BlockConfig, TargetEnds
from mmspec.errors import ConfigError
from mmspec.target import Target
from mmspec.training.heads.batch import Batch, shifted
from mmspec.training.heads.method import Losses, as_stored
from mmspec.training.heads.soft import soft_cross_entropy, summed_over_tokens
from mmspec.training.heads.target_head import head_weight
from mmspec.training.heads.unrolled import unrolled

_FEW_LAYERS = 8  # of a target, below which the published choice of three is none


class Eagle3Method:
    """The head says tokens, over a vocabulary of frequent ones, from three of the target's states;
    in training it drafts `steps` tokens at every place, each from its own state of the one before:

        L = sum_k decay^k CE(p_(t + k), q_k)

    where p is the target's distribution over the head's vocabulary. A place counts where the
    target's best token is in it.
    """

    kv_layer: int | None = None
    rate = 1e-4

    def __init__(
        self,
        target: Target,
        counts: NDArray[np.int64],
        *,
        steps: int = 7,
        loss_decay: float = 0.8,
        vocabulary: int = 32000,
        layers: int = 1,
    ) -> None:
        """`counts` (vocab,): how often each token is to be said; the `vocabulary` most frequent
        ones are the head's, whose matrix over them begins as the target's. Raises ConfigError."""
        if steps < 1 or vocabulary < 2 or layers < 1:
            raise ConfigError(
                f"train.eagle3: steps={steps}, vocabulary={vocabulary}, layers={layers}: expected "
                "1 or more steps and layers, and 2 tokens or more"
            )
        text = target.model.config.get_text_config(decoder=True)
        block = BlockConfig.of_target(text, num_layers=layers)
        tokens = frequent_tokens(counts, vocabulary)
        config = EagleHeadConfig(
            version=3,
            block=block,
            draft_vocab_size=len(tokens),
            target_hidden_size=block.hidden_size,
            layers=read_layers(target.last_tap),
            has_embedding=False,
        )
        module = EagleHead(config)
        module.set_vocabulary(tokens)
        assert module.lm_head is not None
        with torch.no_grad():
            module.lm_head.weight.copy_(head_weight(target).cpu()[tokens])
        self._ends = TargetEnds(target)
        self.module = module.to(self._ends.device, torch.float32)
        self._read = config.taps(target.last_tap)
        self.taps = frozenset([*self._read, target.last_tap])
        self.depth = steps
        self._last = target.last_tap
        self._decay = loss_decay

    def loss(self, batch: Batch, generator: torch.Generator) -> Losses:
        """The mean over the places whose draft is learned, a step at a time."""
        wanted_states = batch.hidden[self._last].float()
        total, parts = wanted_states.new_zeros(()), {}
        for step, said in enumerate(self._unrolled(batch)):
            _, learned = batch.ahead(step + 2)
            # What the target says of the token that is drafted: at the place before it.
            wanted = shifted(wanted_states, step + 1)[learned]
            loss = summed_over_tokens(self._token_loss, said.read[learned], wanted)
            loss = loss / batch.num_learned(step + 2)
            total = total + self._decay**step * loss
            parts[f"draft {step + 1}"] = loss.detach()
        return Losses(total, parts)

    def _token_loss(self, read: Tensor, wanted: Tensor) -> Tensor:
        """The sum over tokens; one whose best choice is none of the head's teaches nothing."""
        logits = self._ends.logits(wanted).detach()
        is_known = self.module.t2d[logits.argmax(-1)]
        own = logits.index_select(-1, self._tokens())
        return (soft_cross_entropy(self._logits(read), own) * is_known).sum()

    def _unrolled(self, batch: Batch) -> Iterator[HeadStates]:
        joined = torch.cat([batch.hidden[tap].float() for tap in self._read], dim=-1)
        features = self.module.project(joined)
        return unrolled(self.module, self._ends, batch, features, steps=self.depth)

    def drafts(self, batch: Batch, *, top_k: int) -> Tensor:
        tokens = self._tokens()
        count = min(top_k, len(tokens))
        best = [
            tokens[self._logits(said.read).topk(count).indices] for said in self._unrolled(batch)
        ]
        return torch.nn.functional.pad(torch.stack(best), (0, top_k - count), value=-1)

    def save(self, folder: Path, *, dtype: torch.dtype) -> None:
        save(as_stored(self.module, dtype), folder)

    def _logits(self, read: Tensor) -> Tensor:
        assert self.module.lm_head is not None
        return self.module.lm_head(read)

    def _tokens(self) -> Tensor:
        """(draft vocab,) the target's ids of the head's tokens."""
        own = self.module.target_ids
        if own is None:
            return torch.arange(self.module.config.draft_vocab_size, device=self._ends.device)
        return own


def frequent_tokens(counts: NDArray[np.int64], size: int) -> Tensor:
    """(size,) int64, increasing: the most frequent tokens; of those that are as frequent, the lower
    ids."""
    order = np.argsort(-counts, kind="stable")[: min(size, len(counts))]
    return torch.from_numpy(np.sort(order))


def read_layers(num_layers: int) -> tuple[int, ...]:
    """The hidden states that a new head reads of a target with so many layers: a low one, a middle
    one and a high one, as published heads do."""
    if num_layers >= _FEW_LAYERS:
        return (2, num_layers // 2, num_layers - 3)
    return tuple(sorted({min(1, num_layers - 1), num_layers // 2, num_layers - 1}))
