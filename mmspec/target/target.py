"""Target: any transformers decoder as `prefill` and `score`."""

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmspec.kv import KVCache
from mmspec.state import Placement, Prefill, Prompt, Scores
from mmspec.target.attached import Attachments, Attention
from mmspec.target.families import mask_rules, refuse_unsupported
from mmspec.target.linears import Linears
from mmspec.target.masks import MaskRule
from mmspec.target.positions import prompt_positions
from mmspec.tree import TokenTree


class Target:
    """The model whose distribution is kept.

    Holds no request's state and changes nothing on the model but within a score call, which runs
    by `attention` and `linears` (see `attached`); prefill is the model's own forward throughout.
    `taps` are indices into transformers' `hidden_states` (0 is the embedding, i the output of
    layer i).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        mask_rule: MaskRule | None = None,
        attention: Attention = "model",
        linears: Linears | None = None,
    ) -> None:
        """Raises ModelError for a model that cannot be decoded (see `families`)."""
        refuse_unsupported(model)
        self.model = model
        self.mask_rule = mask_rule or mask_rules(model.config)[0]
        self.attachments = Attachments(
            model, mask_rule=self.mask_rule, attention=attention, linears=linears
        )
        # Asked of the model, both cost a walk through its modules, in every call.
        self._first = next(p for p in model.parameters() if p.is_floating_point())
        self._text_config = model.config.get_text_config(decoder=True)
        self._parameters = inspect.signature(model.forward).parameters
        self._lock = threading.Lock()  # forwards of several threads, one after the other

    @property
    def device(self) -> torch.device:
        return self._first.device

    @property
    def dtype(self) -> torch.dtype:
        return self._first.dtype

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

    def new_cache(self) -> KVCache:
        return KVCache(self._text_config.num_hidden_layers)

    def prefill(
        self, prompt: Prompt, cache: KVCache, row: int, *, taps: Sequence[int] = ()
    ) -> Prefill:
        """Runs the whole prompt, its images included, through the model's own forward and commits
        it to `row` of the cache, which must be empty.

        Native on purpose: some families attend in both directions within an image or the prompt.
        """
        assert cache.length(row) == 0, f"row {row} already holds {cache.length(row)} tokens"
        positions, offsets = prompt_positions(self.model, prompt)
        inputs: dict[str, Tensor | int] = {
            name: self._placed(value) for name, value in prompt.model_inputs.items()
        }
        if "logits_to_keep" in self._parameters:
            inputs["logits_to_keep"] = 1
        with self._forward(), cache.writing([row], [prompt.num_tokens]):
            output = self.model(
                input_ids=prompt.token_ids.unsqueeze(0).to(self.device),
                attention_mask=torch.ones(1, prompt.num_tokens, dtype=torch.long).to(self.device),
                position_ids=positions.to(self.device),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=bool(taps),
                **inputs,
            )
        cache.commit({row: range(prompt.num_tokens)})
        hidden = {tap: output.hidden_states[tap][0] for tap in taps}
        return Prefill(output.logits[0, -1], Placement(row, offsets), hidden)

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
        with (
            self._forward(),
            cache.writing([p.row for p in placements], counts) as plan,
            self.attachments.scoring(trees, cache, plan, like=self._first) as inputs,
        ):
            output = self.model(
                input_ids=_padded([tree.tokens for tree in trees]).to(self.device),
                position_ids=_node_positions(trees, lengths, placements).to(self.device),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=bool(taps),
                **inputs,
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
