"""One request's drafting: the features that the head has not read, and its row of the cache."""

from collections.abc import Mapping, Sequence
from threading import RLock
from typing import Protocol

import torch
from torch import Tensor

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.eagle.bound_head import TappingHead
from mmspec.drafters.heads import TextPlaces
from mmspec.drafters.model_session import ModelDrafter, ModelSession
from mmspec.drafters.own_row import OwnRow
from mmspec.kv import KVCache
from mmspec.state import Placement, Prefill, Preparation, Scores, Verdict
from mmspec.tree import TokenTree
from mmspec.uploads import upload

CHUNK = 64  # tokens that a proposal reads on the way; more are read before
_READ_TOKENS = 1024  # in one forward
_ROOM = 256  # a row opens with room for so many tokens beyond those that it reads first


class ReadingDrafter(ModelDrafter, Protocol):
    """Keeps in a cache of its own what its head has read of the target's states."""

    cache: KVCache
    lock: RLock  # held while it is read or written
    window: int  # newest tokens of a text that the head sees
    size_share: float  # what reading a token costs, of the target's own reading

    @property
    def head(self) -> TappingHead: ...

    def read(self, row: int, ids: Sequence[int], features: Tensor, places: Tensor) -> None:
        """Commits tokens beside the joined `features`, behind what the row holds; they stand at
        `places` (planes, tokens)."""


class EagleSession(ModelSession[ReadingDrafter]):
    """The token at index t is read beside the target's feature of the token before it, whose
    position it has: the pair at position t - 1. The row holds the pairs from position `_first` on,
    as many as are committed; behind them come those whose features wait in `_features`.

    Where features are missing, as of a prompt's beginning that was reused, or are too many, the row
    begins later. What touches the cache holds the drafter's lock.
    """

    def __init__(
        self,
        drafter: ReadingDrafter,
        num_tokens: int,
        prefill: Prefill,
        guide: DraftGuide,
        places: TextPlaces,
    ) -> None:
        """`num_tokens` of the prompt; `places` of the text's tokens, which are those of the
        features."""
        super().__init__(drafter, guide)
        self._row = OwnRow(drafter.cache, drafter.lock)
        self._first = 0
        self._places = places
        self._features: list[Tensor] = []  # joined, (tokens, taps * hidden) each
        self._num_waiting = 0
        self._num_known = num_tokens  # tokens of the text whose features are, or were, known
        hidden = {tap: prefill.hidden[tap][-drafter.window :] for tap in drafter.head.taps}
        self._wait(drafter.head.joined(hidden))

    # The drafter's calls

    def preparation(self, num_tokens: int) -> Preparation | None:
        """Reading the prompt, or what was chosen while nobody asked."""
        if self._row.is_open and self._num_waiting <= CHUNK:
            return None
        return Preparation(tokens=self._drafter.size_share * self._num_waiting)

    def prepare(self, tokens: Sequence[int]) -> None:
        with self._drafter.lock:
            self.catch_up(tokens)

    def observe(self, tree: TokenTree, verdict: Verdict, scores: Scores) -> None:
        """The accepted path's features wait until they are asked for."""
        super().observe(tree, verdict, scores)
        path = verdict.path
        self._wait(self._drafter.head.joined(_along(path, scores.hidden)))
        self._num_known += len(path)

    def close(self) -> None:
        self._features.clear()
        self._row.close()

    # A proposal, step by step

    @property
    def placement(self) -> Placement:
        offsets = tuple(offset + self._first for offset in self._places.offsets)
        return Placement(self._row.number, offsets)

    def catch_up(self, tokens: Sequence[int]) -> None:
        """Reads all but the newest pairs, and those of images, and drops the oldest ones beyond the
        window."""
        assert self._num_known == len(tokens) - 1, "the text is not what was observed"
        drafter, cache = self._drafter, self._drafter.cache
        if self._num_waiting > drafter.window:
            self._keep_newest()
        start = self._num_known - self._num_waiting  # of the first pair that waits
        if not self._row.is_open:
            self._row.open(self._num_waiting + _ROOM)
            self._first = start
        row = self._row.number
        held = cache.length(row)
        if self._first + held != start:  # what lay between was dropped
            cache.truncate(row, 0)
            self._first = start
        elif held + self._num_waiting > drafter.window:
            self._forget(held)
        if self._is_late:
            self._read_late(tokens)

    @property
    def _is_late(self) -> bool:
        """Whether pairs wait that a proposal does not read on the way."""
        start = self._num_known - self._num_waiting
        return self._num_waiting > CHUNK or start < self._places.num_uneven

    @property
    def is_behind(self) -> bool:
        """Whether there is any."""
        return self._num_waiting > 0

    def waiting(self, tokens: Sequence[int]) -> tuple[Sequence[int], Tensor]:
        """The pairs that are left, node 0's among them: tokens, and the features beside them."""
        features = self._joined()
        return tokens[-features.shape[0] :], features

    def has_read(self) -> None:
        """All that waited is in the cache."""
        self._features, self._num_waiting = [], 0

    def _wait(self, features: Tensor) -> None:
        self._features.append(features)
        self._num_waiting += features.shape[0]
        if self._num_waiting > 2 * self._drafter.window:  # nobody asks
            self._keep_newest()

    def _read_late(self, tokens: Sequence[int]) -> None:
        drafter = self._drafter
        while self._is_late:
            count = min(self._num_waiting - 1, _READ_TOKENS)
            features = self._joined()
            first = self._num_known - self._num_waiting
            ids = tokens[first + 1 : first + 1 + count]
            places = self._places.at(first, count)
            drafter.read(self._row.number, ids, features[:count], places)
            self._features, self._num_waiting = [features[count:]], self._num_waiting - count
        # Nobody may ask for long: what is left must not hold a prompt's features.
        self._features = [part.clone() for part in self._features]

    def _keep_newest(self) -> None:
        """The oldest features will not be read."""
        self._num_waiting = self._drafter.window
        self._features = [self._joined()[-self._num_waiting :].clone()]

    def _joined(self) -> Tensor:
        if len(self._features) > 1:
            self._features = [torch.cat(self._features)]
        return self._features[0]

    def _forget(self, held: int) -> None:
        """The newer half of the window stays. Keys are rotated by where they stood, which is what
        counts; so that they are moved, and not computed again."""
        row, cache, room = self._row.number, self._drafter.cache, self._drafter.window // 2
        kept = min(max(room - self._num_waiting, 0), held)
        segment = cache.read(row, held - kept, held)
        cache.truncate(row, 0)
        if kept:
            cache.append(row, segment, count=kept)
        self._first += held - kept


def _along(path: Sequence[int], hidden: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The nodes' states of each tap."""
    count = len(path)
    if tuple(path) == tuple(range(count)):
        return {tap: states[:count] for tap, states in hidden.items()}
    places = {states.device: None for states in hidden.values()}
    picked = {device: upload(path, device) for device in places}
    return {tap: states.index_select(0, picked[states.device]) for tap, states in hidden.items()}
