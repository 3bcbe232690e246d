"""MtpHead: a model's own layer for the tokens to come, as trees are scored by it."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmspec.attention.interface import KEYWORD, attached
from mmspec.drafters.eagle.bound_head import FeatureHead
from mmspec.drafters.eagle.module import HeadStates
from mmspec.drafters.heads import CachedAttend, TargetEnds
from mmspec.drafters.heads.folder import take
from mmspec.drafters.mtp import checkpoint
from mmspec.drafters.mtp.layer import Turns, build, renaming
from mmspec.target import Target
from mmspec.target.families import index_layers


class MtpHead(FeatureHead):
    """Embedding, head and rotations are the target's, as are the rules by which its attention and
    its experts compute."""

    def __init__(
        self,
        target: Target,
        folder: str | Path,
        *,
        revision: str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """`dtype` None: the target's. Raises ModelError for a folder without such a layer,
        ConfigError for weights of another target's."""
        tensors = checkpoint.read(
            folder,
            num_layers=target.last_tap,
            revision=revision,
            renamed=renaming(target.model),
        )
        layer, self._config, reach = build(target.model, tensors)
        layer.load_state_dict(take(tensors, layer.state_dict(), who=str(folder)), assign=True)
        ends = TargetEnds(target)
        self._layer = layer.requires_grad_(False).eval()
        kept = target.model._keep_in_fp32_modules_strict or ()
        _move(layer, ends.device, dtype or ends.dtype, kept=kept)
        super().__init__(self._layer, [reach], ends, embedding=None, lm_head=None)
        self.taps = (target.last_tap,)
        self.index_layers = [0] if 0 in index_layers(self._config) else []
        self._turns = Turns(target.model, self._config)
        self.planes = self._turns.planes
        # Latent attention (DeepSeek) keeps no keys that ours could read.
        self._by_mask = target.attachments.attention == "model"

    def states(
        self, ids: Tensor, features: Tensor, positions: Tensor, attend: CachedAttend
    ) -> HeadStates:
        positions = positions + 1  # the token's own
        layer, embeddings = self._layer, self.embed(ids)
        with self.quick(), self._attending(attend, features) as told:
            parts = [layer.enorm(embeddings), layer.hnorm(features)]
            if getattr(self._config, "mtp_hidden_states_first", False):
                parts.reverse()
            states = layer.mtp_block(
                layer.eh_proj(torch.cat(parts, dim=-1)),
                position_embeddings=self._turns(embeddings, positions),
                position_ids=positions if self.planes == 1 else positions[0],
                past_key_values=attend.cache,
                **told,
            )
            if isinstance(states, tuple):  # some families' layers hand on what they chose to see
                states = states[0]
            if layer.post_norm is not None:
                states = layer.post_norm(states)
        return HeadStates(states, states)

    @contextmanager
    def _attending(self, attend: CachedAttend, like: Tensor) -> Iterator[dict[str, Any]]:
        """Within it, the layer attends as the target's do; yields the keywords that it needs."""
        if self._by_mask:
            plan = attend.cache.flat_layers[0].plan
            assert plan is not None, "a forward over the cache runs inside `cache.writing(...)`"
            plan.is_viewed = True
            yield {"attention_mask": attend.call.dense_mask(self.reaches[0], like)}
            return
        with attached(self._config):
            yield {"attention_mask": None, KEYWORD: attend.call}


def _move(
    layer: nn.Module, device: torch.device, dtype: torch.dtype, *, kept: Collection[str]
) -> None:
    """All of it but the weights whose names have one of `kept` in them, which are not rounded to 16
    bits: biases by which experts are chosen differ by little."""
    least = torch.promote_types(dtype, torch.float32)
    whole = {
        name: weight.to(device, least)
        for name, weight in layer.state_dict().items()
        if any(part in name for part in kept)
    }
    layer.to(device, dtype).load_state_dict(whole, strict=False, assign=True)
