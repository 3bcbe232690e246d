"""Reuse: what is stored of a prompt's beginning goes into its row, and what the row commits is
stored for later prompts."""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import repeat

from mmspec.encoders.media import Media
from mmspec.kernels import says_used_up
from mmspec.kv import KVCache, Lease, PrefixStore
from mmspec.reads import Readback
from mmspec.row import Row
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.target.cross import sight_keys
from mmspec.target.keys import prompt_keys, text_keys
from mmspec.target.positions import prompt_positions

logger = logging.getLogger(__name__)


@dataclass
class StoredText:
    """A row's prompt as the store knows it. The lease ends with the row."""

    namespace: str
    weights: Hashable
    keys: list[Hashable]  # of the prompt's tokens
    lease: Lease
    beside: Sequence[Hashable] = ()  # one key: of what its newest tokens read beside the text


class Reuse:
    """The prefix store, as the rows of one cache use it."""

    def __init__(
        self, target: Target, cache: KVCache, store: PrefixStore, *, unit_tokens: int | None
    ) -> None:
        """`unit_tokens`: of a prompt a multiple of so many is kept and used again (0: nothing), and
        nothing of what is chosen after it; None: all."""
        self._target = target
        self._cache = cache
        self._store = store
        self._unit_tokens = unit_tokens

    def find(
        self, prompt: Prompt, media: Media, namespace: str, weights: Hashable
    ) -> StoredText | None:
        """The prompt, and a lease on what is stored of it; None where equal tokens prove nothing.
        `weights` tells apart what one text gives under other weights."""
        positions, _ = prompt_positions(self._target.model, prompt)
        has_blocks = self._target.cuts.has_blocks
        keys = prompt_keys(prompt, media, positions, has_blocks=has_blocks)
        if keys is None:
            return None
        beside = sight_keys(prompt, media) if self._target.cross_layers else []
        keys = list(zip(keys, beside, strict=True)) if beside else keys
        lease = self._store.match(namespace, weights, keys)
        return StoredText(namespace, weights, keys, lease, beside[-1:])

    def begin(self, text: StoredText, prompt: Prompt, slot: int) -> int:
        """Copies what is stored of the prompt into the slot, which is empty. Returns where the
        prompt parts from a stored one, if a running state is wanted there; else 0."""
        # The last token is always computed: its logits choose the first new one. Where a drafter
        # looks at queries, so are the newest ones.
        log = self._cache.queries
        computed = 1 if log is None else log.num_tokens
        reusable = min(text.lease.length, max(prompt.num_tokens - computed, 0))
        count = self._target.cuts.last_border(prompt, self._whole_units(reusable))
        parting = 0
        if self._cache.states is not None:
            parting, count = count, text.lease.resumable(count)
        text.lease.copy_to(self._cache, slot, count=count)
        return parting

    def keep_prompt(self, text: StoredText, slot: int, *, is_nan: Readback) -> None:
        """What the slot holds of the prompt joins the store, once that is all of it; before, where
        a running state is kept behind it, for a later prompt can only go on at one. Not where its
        logits are NaN, which is on its way: so would be those of all prompts that begin with it."""
        held = self._cache.length(slot)
        if held < len(text.keys) and self._cache.states is None:
            return
        ((has_failed,),) = is_nan.values()
        if not has_failed:
            self._insert(text, text.keys[: self._whole_units(held)], slot)

    def keep(self, text: StoredText, row: Row) -> None:
        """All that the row has committed joins the store."""
        placement = row.placement
        held = self._cache.length(placement.row)
        generated = row.tokens[row.prompt.num_tokens : held]
        new = text_keys(generated, repeat(placement.position_offsets))
        for beside in text.beside:
            new = [(key, beside) for key in new]
        keys = [*text.keys, *new]
        if self._unit_tokens is not None:  # what was scored has other bits than what was prefilled
            keys = text.keys[: self._whole_units(len(text.keys))]
        self._insert(text, keys, placement.row)

    def _whole_units(self, tokens: int) -> int:
        if self._unit_tokens is None:
            return tokens
        return tokens - tokens % self._unit_tokens if self._unit_tokens else 0

    def _insert(self, text: StoredText, keys: Sequence[Hashable], slot: int) -> None:
        try:
            self._store.insert(text.namespace, text.weights, keys, self._cache, slot)
        except Exception as error:  # what is kept must never cost a text
            if not says_used_up(error):
                raise
            logger.warning("no memory to keep a text's KV: the prefix store is cleared")
            self._store.clear()
