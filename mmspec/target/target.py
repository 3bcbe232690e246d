"""Target: any transformers decoder as `prefill` and `score`."""

import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.encoders.features import FeatureSource
from mmspec.encoders.media import join, token_inputs
from mmspec.kv import KVCache
from mmspec.state import Placement, Prefill, Prompt, Scores
from mmspec.target.families import mask_rules, prompt_cuts, refuse_unsupported
from mmspec.target.masks import MaskRule
from mmspec.target.positions import prompt_positions
from mmspec.tree import TokenTree


class Target:
    """The model whose distribution is kept.

    Holds no request's state and changes nothing on the model. `taps` are indices into
    transformers' `hidden_states` (0 is the embedding, i the output of layer i).
    """

    def __init__(self, model: PreTrainedModel, *, mask_rule: MaskRule | None = None) -> None:
        """Raises ModelError for a model that cannot be decoded (see `families`)."""
        refuse_unsupported(model)
        self.model = model
        self.mask_rule = mask_rule or mask_rules(model.config)[0]
        self._text_config = model.config.get_text_config(decoder=True)
        self._parameters = inspect.signature(model.forward).parameters
        self.cuts = prompt_cuts(model.config)  # narrowed where the encoders turn out unusual
        self._lock = threading.Lock()  # forwards of several threads, one after the other

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def vocab_size(self) -> int:
        return self._text_config.vocab_size

    @property
    def num_embeddings(self) -> int:
        """Token ids that the model can read; more than vocab_size where a family pads."""
        return self.model.get_input_embeddings().num_embeddings

    @property
    def max_positions(self) -> int | None:
        """The context that the model was made for, in tokens; None where it does not say."""
        return getattr(self._text_config, "max_position_embeddings", None)

    @property
    def fingerprint(self) -> int:
        """Differs once a weight is written to or replaced, or another adapter is switched on, so
        that nothing computed before is taken for this model's. Writes past autograd's version
        counter (`.data`) are not seen."""
        state: list[object] = []
        for module in self.model.modules():
            for name in _ADAPTER_STATE:
                if name in vars(module):
                    state.append(str(vars(module)[name]))
            for weight in module.parameters(recurse=False):
                version = 0 if weight.is_inference() else weight._version
                state.append((id(weight), version, weight.dtype, weight.device))
        return hash(tuple(state))

    def new_cache(self) -> KVCache:
        return KVCache(self._text_config.num_hidden_layers)

    def prefill(
        self,
        prompt: Prompt,
        cache: KVCache,
        row: int,
        *,
        start: int = 0,
        stop: int | None = None,
        taps: Sequence[int] = (),
        features: FeatureSource | None = None,
    ) -> Prefill:
        """Runs the prompt's tokens [start, stop), their images included, through the model's own
        forward and commits them to `row` of the cache, which must hold the `start` before them.

        Native on purpose: some families attend in both directions within an image or the prompt.
        Only what comes behind committed tokens gets our own mask. Where a prompt may be cut is
        told by `cuts`. `logits` are those of the last token run, `hidden` of all that ran.
        A part of a prompt with media needs `features`; the whole can have them encoded natively.
        """
        stop = prompt.num_tokens if stop is None else stop
        held = cache.length(row)
        assert held == start, f"row {row} already holds {held} tokens, expected {start}"
        positions, offsets = prompt_positions(self.model, prompt)
        inputs: dict[str, Tensor | int] = {
            name: self._placed(value)
            for name, value in self._part_of_inputs(prompt, start, stop, features).items()
        }
        if "logits_to_keep" in self._parameters:
            inputs["logits_to_keep"] = 1
        with (
            self._forward(),
            cache.writing([row], [stop - start]),
            _fed(self.model, start, stop, features),
        ):
            output = self.model(
                input_ids=prompt.token_ids[start:stop].unsqueeze(0).to(self.device),
                attention_mask=_on_device(self._prompt_mask(prompt, start, stop), self.device),
                position_ids=positions[..., start:stop].to(self.device),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=bool(taps),
                **inputs,
            )
        cache.commit({row: range(stop - start)})
        hidden = {tap: output.hidden_states[tap][0] for tap in taps}
        return Prefill(output.logits[0, -1], Placement(row, offsets), hidden)

    def _prompt_mask(self, prompt: Prompt, start: int, stop: int) -> Tensor | Mapping[str, Tensor]:
        if start == 0:
            return torch.ones(1, stop, dtype=torch.long)
        blocks = prompt.media if self.cuts.has_blocks else ()
        within = [(s.start - start, s.stop - start) for s in blocks if start <= s.start < stop]
        return self.mask_rule.build_chunk(start, stop - start, within, self.dtype)

    def _part_of_inputs(
        self, prompt: Prompt, start: int, stop: int, features: FeatureSource | None
    ) -> dict[str, Tensor]:
        """The model's inputs beside the token ids, for the tokens [start, stop)."""
        if stop - start == prompt.num_tokens:
            return dict(prompt.model_inputs)
        inputs: dict[str, Tensor] = {}
        if start == 0:  # with our own mask and positions there is nothing left for them to say
            inputs = {name: value[:, :stop] for name, value in token_inputs(prompt).items()}
        if prompt.media:
            assert features is not None, "a part of a prompt with media needs features"
            for kind, place in features.media.placeholders(start, stop).items():
                inputs |= join(features.media.needed(kind, *place))
        return inputs

    def score(
        self,
        trees: Sequence[TokenTree],
        cache: KVCache,
        placements: Sequence[Placement],
        *,
        taps: Sequence[int] = (),
    ) -> list[Scores]:
        """Scores one tree a row, all in one forward. The nodes' keys are written behind each row's
        committed tokens, and kept or dropped by `cache.commit`."""
        counts = [tree.num_nodes for tree in trees]
        lengths = [cache.length(placement.row) for placement in placements]
        mask = self.mask_rule.build(trees, lengths, self.dtype)
        with self._forward(), cache.writing([p.row for p in placements], counts):
            output = self.model(
                input_ids=_padded([tree.tokens for tree in trees]).to(self.device),
                attention_mask=_on_device(mask, self.device),
                position_ids=_node_positions(trees, lengths, placements).to(self.device),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=bool(taps),
            )
        return [
            Scores(
                output.logits[index, :count],
                {tap: output.hidden_states[tap][index, :count] for tap in taps},
            )
            for index, count in enumerate(counts)
        ]

    def _placed(self, value: Tensor) -> Tensor:
        """On the model's device; pixels and the like in the model's dtype."""
        return value.to(self.device, self.dtype if value.is_floating_point() else None)

    @contextmanager
    def _forward(self) -> Iterator[None]:
        with self._lock, torch.no_grad():
            yield


_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters")  # of peft's layers


@contextmanager
def _fed(
    model: PreTrainedModel, start: int, stop: int, features: FeatureSource | None
) -> Iterator[None]:
    """The model with the features of the placeholders within [start, stop), where it is given
    any."""
    placeholders = features.media.placeholders(start, stop) if features is not None else {}
    if features is None or not placeholders:
        yield
        return
    with features.attached(model, placeholders):
        yield


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(batch, nodes) int64; short rows are padded with token 0, which no one sees."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])


def _node_positions(
    trees: Sequence[TokenTree], lengths: Sequence[int], placements: Sequence[Placement]
) -> Tensor:
    """Committed length + depth + the row's offset: (batch, nodes), or (planes, batch, nodes) under
    M-RoPE. Siblings share a position."""
    index = _padded([[n + d for d in t.depths] for t, n in zip(trees, lengths, strict=True)])
    offsets = torch.tensor([placement.position_offsets for placement in placements])
    planes = index + offsets.T.unsqueeze(-1)
    return planes[0] if planes.shape[0] == 1 else planes


def _on_device(
    mask: Tensor | Mapping[str, Tensor], device: torch.device
) -> Tensor | dict[str, Tensor]:
    if isinstance(mask, Tensor):
        return mask.to(device)
    return {kind: tensor.to(device) for kind, tensor in mask.items()}
