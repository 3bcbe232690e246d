"""One request's drafting by a GliDe head: its row of the head's own cache, and what that holds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.glide.scoring import Sight
from mmspec.drafters.growing.growth import Growth
from mmspec.drafters.model_session import ModelSession
from mmspec.drafters.own_row import OwnRow
from mmspec.drafters.proposal import Proposal
from mmspec.drafters.walked import held_path
from mmspec.kv import KVCache
from mmspec.state import Placement, Preparation
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.glide.drafter import BoundGlide

FEW = 32  # tokens that a proposal reads by the way; more are read before it
_EXPECTED_TOKENS = 256  # a row opens with room for so many beyond what it reads first


class GlideSession(ModelSession["BoundGlide"]):
    """The head's cache holds the text's tokens from `first` on, `num_cached` of them, and behind
    them, not committed, what the last proposal wrote. Of what stands before `first`, and of images,
    the target's KV tells. What touches the cache holds the drafter's lock."""

    def __init__(
        self,
        drafter: "BoundGlide",
        num_prompt: int,
        placement: Placement,
        target_cache: KVCache,
        guide: DraftGuide,
    ) -> None:
        """`placement` is the row's in the target's cache."""
        super().__init__(drafter, guide)
        self.target_cache = target_cache
        self.first = max(num_prompt - drafter.num_read, 0)
        self.num_cached = 0
        self.missing: list[int] = []  # tokens whose keys are not in the cache: node 0, and others
        self._target = placement
        self._row = OwnRow(drafter.cache, drafter.lock)
        self._written: TokenTree | None = None

    # The drafter's calls

    def preparation(self, num_tokens: int) -> Preparation | None:
        """Reading the prompt's end; later what was chosen while nobody asked, or, past the texts
        that it was trained on, the newest half of them anew."""
        most = self._drafter.num_readable
        late = num_tokens - self.first - self.num_cached
        if num_tokens - self.first > most:
            late = most // 2
        elif self._row.is_open and late <= FEW:
            return None
        return Preparation(tokens=self._drafter.read_share * late, lasts_tokens=most / 2)

    def prepare(self, tokens: Sequence[int]) -> None:
        with self._drafter.lock:
            self.catch_up(tokens)
            self._drafter.read_late([self])

    def close(self) -> None:
        self._row.close()

    # A proposal, step by step

    @property
    def placement(self) -> Placement:
        """In the head's own cache."""
        return Placement(self._row.number, (self.first,))

    @property
    def sight(self) -> Sight:
        """What is there of the target's KV, as of now."""
        committed = self.target_cache.length(self._target.row)
        return Sight(self._target.row, committed, self._target.position_offsets)

    def catch_up(self, tokens: Sequence[int]) -> None:
        """Keeps what the target took of the last proposal, drops the rest."""
        assert self.sight.committed == len(tokens) - 1, "the target's cache is not the text's"
        if not self._row.is_open:
            self._row.open(len(tokens) - self.first + _EXPECTED_TOKENS)
        self.missing = list(tokens[self.first + self.num_cached :])
        written, self._written = self._written, None
        if written is not None:
            # Never the last token, which is to be said anew what follows.
            self.keep(held_path(written, self.missing[:-1]))
        if len(tokens) - self.first > self._drafter.num_readable:
            self._begin_again(tokens)

    def keep(self, path: Sequence[int]) -> None:
        """Of what was written the nodes `path`, which hold the first missing tokens."""
        self._drafter.cache.commit({self.placement.row: path})
        self.num_cached += len(path)
        del self.missing[: len(path)]

    def grown(self, growth: Growth, tokens: Sequence[int]) -> Proposal:
        self._written = growth.written
        return super().grown(growth, tokens)

    def _begin_again(self, tokens: Sequence[int]) -> None:
        """Past the texts that the head was trained on its oldest tokens leave: the newest half is
        read anew. That is one more token read for each that is drafted for, at most."""
        self._drafter.cache.truncate(self.placement.row, 0)
        self.first, self.num_cached = len(tokens) - self._drafter.num_readable // 2, 0
        self.missing = list(tokens[self.first :])
