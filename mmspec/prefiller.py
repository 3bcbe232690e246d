"""Prefiller: prompts into the KV cache, a chunk at a time, from what is known of them already."""

import logging
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from traceback import clear_frames

import torch
from torch import Tensor

from mmspec.callbacks import call_back
from mmspec.encoders.company import CompanyError
from mmspec.encoders.features import FeatureCache, FeatureInfo, FeatureSource
from mmspec.encoders.media import split_media
from mmspec.encoders.outputs import FeatureError
from mmspec.kv import KVCache, PrefixStore, StoreInfo
from mmspec.reads import Readback
from mmspec.reuse import Reuse, StoredText
from mmspec.row import Row
from mmspec.state import Prefill, Taps
from mmspec.stats import Stopwatch
from mmspec.target import Target

logger = logging.getLogger(__name__)

_TELLING_TOKENS = 64  # a prefill of fewer says little of what a token takes
_EXPECTED_TOKENS = 512  # a row opens with room for so many; a longer text makes it grow


@dataclass(frozen=True)
class PrefillSettings:
    """What an engine keeps over its requests, and how much of a prompt it takes at once."""

    prefixes: PrefixStore | None = None  # None: no text's KV is kept
    features: FeatureCache | None = None  # None: no encoder's output is kept
    chunk_tokens: int | None = None  # None: a prompt in one go
    is_bitwise: bool = False  # what is kept changes no bit: whole chunks of prompts without media

    def info(self, *, off_because: str | None = None) -> "CacheInfo":
        return CacheInfo(
            self.prefixes.info if self.prefixes else StoreInfo(0, 0, 0, 0),
            self.features.info if self.features else FeatureInfo(0, 0, 0),
            off_because,
        )


@dataclass(frozen=True)
class CacheInfo:
    """What an engine keeps from request to request."""

    prefixes: StoreInfo
    features: FeatureInfo
    off_because: str | None  # why no part of this model's prompts can be used again


class Prefiller:
    """The rows whose prompts are on their way into the cache, first come, first served.

    With `chunk_tokens` a step prefills about so many prompt tokens and no more, so that rows that
    decode already go on in between.
    """

    def __init__(
        self, target: Target, cache: KVCache, settings: PrefillSettings, *, room_tokens: int
    ) -> None:
        """`room_tokens`: what a row's region has beside its prompt and the expected text."""
        self._target = target
        self._cache = cache
        self._features = settings.features
        self._chunk_tokens = settings.chunk_tokens
        self._is_bitwise = settings.is_bitwise
        self._room_tokens = room_tokens
        self._waiting: deque[_Pending] = deque()
        self._reuse: Reuse | None = None
        if settings.prefixes is not None:
            # In bitwise mode what every prompt has in the same chunks.
            unit = (settings.chunk_tokens or 0) if settings.is_bitwise else None
            self._reuse = Reuse(target, cache, settings.prefixes, unit_tokens=unit)
        self._texts: dict[Row, StoredText] = {}  # rows that decode, whose text the store will get

    @property
    def rows(self) -> list[Row]:
        """Those whose prefill has not ended."""
        return [pending.row for pending in self._waiting]

    def admit(self, rows: Iterable[Row | None]) -> None:
        """Takes rows, up to a None: there is none now."""
        for row in rows:
            if row is None:
                return
            self._waiting.append(_Pending(row))

    def step(self) -> Iterator[Row]:
        """Prefills the next chunks; yields each row whose prompt is done, or has failed, or that
        nobody waits for any more."""
        for pending in tuple(self._waiting):
            pending.row.end_if_unwanted()
            if pending.row.is_done:
                self._abandon(pending)
                self._waiting.remove(pending)
                yield pending.row
        spent = 0
        while self._waiting and (self._chunk_tokens is None or spent < self._chunk_tokens):
            pending = self._waiting[0]
            spent += pending.row.attempt(partial(self._advance, pending)) or 0
            if pending.row.is_prefilled or pending.row.is_done:
                self._waiting.popleft()
                yield pending.row

    def finish(self, row: Row) -> None:
        """The row has ended: its text joins the store, its slots are free again."""
        text = self._texts.pop(row, None)
        if text is not None and self._reuse is not None:
            try:
                if row.error is None:
                    self._reuse.keep(text, row)
            finally:
                text.lease.release()
        if row.is_prefilled:
            self._cache.close(row.placement.row)

    def close(self) -> None:
        """Nobody waits for any row any more."""
        for text in (*self._texts.values(), *(p.text for p in self._waiting if p.text)):
            text.lease.release()

    def _advance(self, pending: "_Pending") -> int:
        """Prefills one chunk; returns its tokens. After the last one the row begins."""
        row, watch = pending.row, Stopwatch()
        try:
            self._keep(pending)  # what the chunk before has left, which has been computed by now
            start, prefill = self._run_chunk(pending)
            watch.lap("prefill")
            row.stats.add_seconds(watch.seconds)
            held = self._cache.length(prefill.placement.row)
            if row.on_prefill is not None:
                call_back(row.on_prefill, held, row.prompt.num_tokens)
            if pending.text is not None:
                pending.is_nan = Readback(prefill.logits.isnan().any(dim=-1, keepdim=True))
                pending.is_nan.set_out()
        except BaseException:
            self._abandon(pending)
            raise
        if held == row.prompt.num_tokens:
            if pending.text is not None:
                self._texts[row] = pending.text
            if pending.features is not None:
                encoded = row.stats.encoded_media = pending.features.num_encoded
                row.stats.reused_media = pending.features.media.num_items - encoded
            begun = time.perf_counter()
            row.begin(prefill)  # waits for the logits: now all of it has been computed
            if pending.features is not None:
                pending.features.share()
            computed = row.prompt.num_tokens - row.stats.reused_tokens
            if computed >= _TELLING_TOKENS:
                spent_s = row.stats.seconds["prefill"] + time.perf_counter() - begun
                row.drafting.pace.token_s = spent_s / computed
            self._keep(pending)
        return held - start

    def _keep(self, pending: "_Pending") -> None:
        """What the row holds of its prompt joins the store. Only where that is waited for anyway,
        or a step later: whether its logits are NaN is not known before."""
        is_nan, pending.is_nan = pending.is_nan, None
        if is_nan is not None and self._reuse is not None:
            assert pending.text is not None and pending.slot is not None
            self._reuse.keep_prompt(pending.text, pending.slot, is_nan=is_nan)

    def _run_chunk(self, pending: "_Pending") -> tuple[int, Prefill]:
        """(first token of the chunk, what the target says of it)."""
        if pending.slot is None:
            self._open(pending)
        assert pending.slot is not None
        prompt, start = pending.row.prompt, self._cache.length(pending.slot)
        stop = prompt.num_tokens
        if pending.can_cut and self._chunk_tokens is not None:
            stop = self._target.cuts.next_stop(prompt, start, self._chunk_tokens)
        if start < pending.parting:
            stop = min(stop, pending.parting)
        taps = pending.row.drafting.taps
        is_tapped = stop == prompt.num_tokens or taps.whole_prompt
        try:
            prefill = self._target.prefill(
                prompt,
                self._cache,
                pending.slot,
                start=start,
                stop=stop,
                taps=taps.layers if is_tapped else (),
                features=pending.features,
                on_logits=pending.row.on_prompt_logits,
            )
        except FeatureError as error:
            clear_frames(error.__traceback__)  # the forward's: they hold what it has made so far
            if not isinstance(error, CompanyError):
                logger.warning(
                    "%s: %s; its prompts with media are prefilled in one go from now on",
                    type(self._target.model).__name__,
                    error,
                )
                self._target.cuts = replace(self._target.cuts, media_because=str(error))
            self._abandon(pending)
            return self._run_chunk(pending)
        pending.tapped.append(prefill.hidden)
        if stop < prompt.num_tokens:
            return start, prefill
        return start, replace(prefill, hidden=_joined(pending.tapped, taps))

    def _open(self, pending: "_Pending") -> None:
        """A slot for the row, with what is stored of its prompt's beginning already in it."""
        row, prompt = pending.row, pending.row.prompt
        company = self._target.found.company
        # Features that came with the prompt say nothing of its parts.
        media = None if prompt.encoded else split_media(prompt, together=company.together)
        pending.can_cut = media is not None and self._target.cuts.allows(prompt)
        namespace = row.namespace if self._reuse or self._features else None
        weights: Hashable = self._target.fingerprint if namespace is not None else 0
        if self._is_bitwise:
            if prompt.media:  # natively and in one piece, as encoders round by their batch too
                media, pending.can_cut = None, False
            weights = weights, self._chunk_tokens  # never what another way of cutting left
        if media is not None and media.num_items:
            known = self._features if namespace is not None else None
            pending.features = FeatureSource(media, known, namespace or "", weights, company)
        expected = min(row.max_new_tokens, _EXPECTED_TOKENS)
        pending.slot = self._cache.open(prompt.num_tokens + expected + self._room_tokens)
        if self._reuse is None or namespace is None or media is None or not pending.can_cut:
            return
        pending.text = self._reuse.find(prompt, media, namespace, weights)
        # What is known already would have no logits.
        if pending.text is not None and row.on_prompt_logits is None:
            pending.parting = self._reuse.begin(pending.text, prompt, pending.slot)
            row.stats.reused_tokens = self._cache.length(pending.slot)

    def _abandon(self, pending: "_Pending") -> None:
        """As before the row's first chunk."""
        if pending.text is not None:
            pending.text.lease.release()
        if pending.slot is not None:
            self._cache.close(pending.slot)
        pending.slot = pending.text = pending.features = pending.is_nan = None
        pending.parting = 0
        pending.tapped.clear()
        pending.row.stats.reused_tokens = 0


@dataclass
class _Pending:
    """A row whose prompt is not all in the cache yet."""

    row: Row
    slot: int | None = None  # the cache's number of the row, from its first chunk on
    can_cut: bool = False
    parting: int = 0  # where it parts from a stored text, if a running state is wanted there
    features: FeatureSource | None = None
    text: StoredText | None = None
    is_nan: Readback | None = None  # whether the logits of its last chunk are, until that is asked
    tapped: list[Mapping[int, Tensor]] = field(default_factory=list)  # hidden states of each chunk


def _joined(chunks: Sequence[Mapping[int, Tensor]], taps: Taps) -> dict[int, Tensor]:
    """What the row's drafters read of the prompt, layer -> (seq, hidden): all that was computed, or
    a copy of the last token's, so that the rest can go."""
    if not taps.whole_prompt:
        return {layer: states[-1:].clone() for layer, states in chunks[-1].items()}
    return {layer: torch.cat([chunk[layer] for chunk in chunks]) for layer in taps.layers}
