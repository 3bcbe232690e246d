"""FeatureReader: what the target says of examples, found on the fly. Nothing is kept on disk."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmspec.drafters.heads import TargetEnds
from mmspec.errors import InputError
from mmspec.inputs import InputProcessor
from mmspec.kv import KVCache
from mmspec.state import Placement, Prompt
from mmspec.target import Target
from mmspec.target.taps import Hidden
from mmspec.training.heads.batch import Batch, LayerKV
from mmspec.training.heads.examples import Example, encoded
from mmspec.tree import TokenTree

_CHUNK = 128  # tokens of an answer in one forward


class _Row(NamedTuple):
    """One example's: of all of its tokens."""

    hidden: Hidden  # tap -> (seq, hidden)
    kv: tuple[Tensor, Tensor] | None = None  # (seq, kv_heads, head_dim) each
    offsets: tuple[int, ...] = ()  # (planes,)


class FeatureReader:
    """Reads examples by the target's own forward, without gradients; what it gives lies where the
    target's head is computed, as heads do.

    Texts alone are read together, padded. Where there are images, or where a prompt's tokens see
    later ones, or a layer's keys are asked for, each prompt is prefilled as for a request and its
    answer is scored behind it, as when it is generated.
    """

    def __init__(
        self,
        target: Target,
        inputs: InputProcessor,
        *,
        taps: frozenset[int],
        kv_layer: int | None = None,
    ) -> None:
        """`taps` as Target's; `kv_layer`: whose keys and values are wanted, from 0."""
        self._target = target
        self._inputs = inputs
        self._taps = taps
        self._kv_layer = kv_layer
        self._device = TargetEnds(target).device  # a target may lie on several

    def read(self, examples: Sequence[Example]) -> Batch:
        """The examples as one batch. Raises InputError where a picture cannot be opened any more,
        or has become another one."""
        target, device = self._target, self._device
        is_plain = self._kv_layer is None and target.cuts.whole_because is None
        if is_plain and not any(example.request for example in examples):
            texts = [example.tokens.tolist() for example in examples]
            rows = [_Row(hidden) for hidden in target.read(texts, taps=self._taps)]
        else:
            rows = self._prefilled(examples)

        def batched(rows: Iterable[Tensor]) -> Tensor:
            return pad_sequence(list(rows), batch_first=True).to(device)

        kv = offsets = None
        if self._kv_layer is not None:
            pairs = zip(*(row.kv for row in rows if row.kv is not None), strict=True)
            kv = LayerKV(*(batched(states).transpose(1, 2) for states in pairs))
            offsets = torch.tensor([row.offsets for row in rows]).to(device)
        return Batch(
            batched(torch.from_numpy(example.tokens) for example in examples),
            batched(torch.from_numpy(example.learned) for example in examples),
            {tap: batched(row.hidden[tap] for row in rows) for tap in self._taps},
            kv,
            offsets,
        )

    def _prefilled(self, examples: Sequence[Example]) -> list[_Row]:
        """By a prefill of each prompt, and scores of all that stands behind them."""
        target, cache = self._target, self._target.new_cache()
        placements: list[Placement] = []
        hidden: list[list[Hidden]] = []
        rest: list[list[int]] = []
        for example in examples:
            prompt = self._prompt(example)
            rest.append(example.tokens[prompt.num_tokens :].tolist())
            prefill = target.prefill(prompt, cache, cache.open(example.num_tokens), taps=self._taps)
            placements.append(prefill.placement)
            hidden.append([prefill.hidden])
        done = 0
        while rows := [n for n, tokens in enumerate(rest) if len(tokens) > done]:
            parts = [rest[n][done : done + _CHUNK] for n in rows]
            trees = [TokenTree.chain(p[0], p[1:], (1.0,) * (len(p) - 1), "") for p in parts]
            places = [placements[n] for n in rows]
            scores = target.score(trees, cache, places, taps=self._taps)
            cache.commit({place.row: range(len(p)) for place, p in zip(places, parts, strict=True)})
            for n, score in zip(rows, scores, strict=True):
                hidden[n].append(score.hidden)
            done += _CHUNK
        found = [
            _Row(
                {tap: torch.cat([part[tap] for part in parts]) for tap in self._taps},
                self._kv(cache, placement.row),
                placement.position_offsets,
            )
            for parts, placement in zip(hidden, placements, strict=True)
        ]
        cache.release()
        return found

    def _kv(self, cache: KVCache, row: int) -> tuple[Tensor, Tensor] | None:
        if self._kv_layer is None:
            return None
        region = cache.region(row)
        return cache.flat_layers[self._kv_layer].read(region.start, region.start + region.length)

    def _prompt(self, example: Example) -> Prompt:
        """What is prefilled: all of an example without pictures, unless a part of it has to be said
        behind the other as in decoding."""
        if example.request is not None:
            prompt = encoded(self._inputs, example.request)
            if prompt.token_ids.tolist() != example.tokens[: example.num_before].tolist():
                raise InputError(
                    f"{example.id}: its prompt has other tokens than when training began; was a "
                    "picture changed? Train anew, into another folder"
                )
            return prompt
        stop = example.num_tokens
        if self._target.cuts.whole_because is not None:
            stop = example.num_before or (1 if self._sees_ahead else stop)
        return Prompt(torch.from_numpy(example.tokens[:stop]))

    @cached_property
    def _sees_ahead(self) -> bool:
        """Whether tokens of a text without pictures see later ones, as in PaliGemma."""
        tap = self._target.last_tap
        texts = self._target.read([[1, 2, 3], [1, 2, 4]], taps=[tap])
        return not torch.equal(*(text[tap][0] for text in texts))
