"""FeatureReader: what the target says of examples, found on the fly. Nothing is kept on disk."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmspec.errors import InputError
from mmspec.inputs import InputProcessor
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.training.heads.batch import Batch, LayerKV
from mmspec.training.heads.examples import Example, encoded
from mmspec.tree import TokenTree

_CHUNK = 128  # tokens of an answer in one forward


class _Row(NamedTuple):
    """One example's: of all of its tokens."""

    hidden: Mapping[int, Tensor]  # tap -> (seq, hidden)
    kv: tuple[Tensor, Tensor] | None = None  # (seq, kv_heads, head_dim) each
    offsets: tuple[int, ...] = ()  # (planes,)


class FeatureReader:
    """Reads examples by the target's own forward, without gradients.

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

    def read(self, examples: Sequence[Example]) -> Batch:
        """The examples as one batch. Raises InputError where a picture cannot be opened any more,
        or has become another one."""
        target, device = self._target, self._target.device
        is_plain = self._kv_layer is None and target.cuts.whole_because is None
        if is_plain and not any(example.request for example in examples):
            texts = [example.tokens.tolist() for example in examples]
            rows = [_Row(hidden) for hidden in target.read(texts, taps=self._taps)]
        else:
            rows = [self._prefilled(example) for example in examples]
        lengths = tuple(example.num_tokens for example in examples)
        seq = max(lengths)
        ids = torch.zeros(len(examples), seq, dtype=torch.long)
        learned = torch.zeros(len(examples), seq, dtype=torch.bool)
        for row, example in enumerate(examples):
            ids[row, : lengths[row]] = torch.from_numpy(example.tokens)
            learned[row, : lengths[row]] = torch.from_numpy(example.learned)
        is_token = torch.arange(seq) < torch.tensor(lengths).unsqueeze(1)
        hidden = {tap: _padded([row.hidden[tap] for row in rows], seq) for tap in self._taps}
        pairs = [row.kv for row in rows if row.kv is not None]
        kv = None
        if pairs:
            keys, values = (
                _padded([pair[part] for pair in pairs], seq).transpose(1, 2) for part in (0, 1)
            )
            kv = LayerKV(keys, values)
        return Batch(
            ids.to(device),
            is_token.to(device),
            learned.to(device),
            lengths,
            hidden,
            kv,
            torch.tensor([row.offsets for row in rows]).to(device) if pairs else None,
        )

    def _prefilled(self, example: Example) -> _Row:
        """One example, by a prefill of its prompt and scores of the rest."""
        target = self._target
        prompt = self._prompt(example)
        rest = example.tokens[prompt.num_tokens :].tolist()
        cache = target.new_cache()
        row = cache.open(example.num_tokens)
        prefill = target.prefill(prompt, cache, row, taps=self._taps)
        parts = [prefill.hidden]
        for start in range(0, len(rest), _CHUNK):
            part = rest[start : start + _CHUNK]
            tree = TokenTree.chain(part[0], part[1:], (1.0,) * (len(part) - 1), "")
            (scores,) = target.score([tree], cache, [prefill.placement], taps=self._taps)
            cache.commit({row: range(len(part))})
            parts.append(scores.hidden)
        kv = None
        if self._kv_layer is not None:
            first = cache.region(row).start
            layer = cache.flat_layers[self._kv_layer]
            kv = layer.read(first, first + example.num_tokens)
        hidden = {tap: torch.cat([part[tap] for part in parts]) for tap in self._taps}
        cache.release()
        return _Row(hidden, kv, prefill.placement.position_offsets)

    def _prompt(self, example: Example) -> Prompt:
        """What is prefilled: of a text without pictures all of it, unless it sees itself whole."""
        if example.request is not None:
            prompt = encoded(self._inputs, example.request)
            if prompt.token_ids.tolist() != example.tokens[: example.num_before].tolist():
                raise InputError(
                    f"{example.id}: its prompt has other tokens than when training began; was a "
                    "picture changed? Train anew, into another folder"
                )
            return prompt
        is_whole = self._target.cuts.whole_because is not None
        stop = example.num_before if is_whole else example.num_tokens
        return Prompt(torch.from_numpy(example.tokens[:stop]))


def _padded(rows: Sequence[Tensor], seq: int) -> Tensor:
    """(batch, seq, ...) of rows (tokens, ...), zeros behind their ends."""
    padded = rows[0].new_zeros(len(rows), seq, *rows[0].shape[1:])
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
