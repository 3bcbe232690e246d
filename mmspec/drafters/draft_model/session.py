"""One request's drafting: its row of the draft model's cache, and how far that has come."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.draft_model.prompts import ReadPrompt
from mmspec.drafters.draft_model.wording import Wording
from mmspec.drafters.growing.growth import Growth
from mmspec.drafters.model_session import ModelSession
from mmspec.drafters.own_row import OwnRow
from mmspec.drafters.proposal import Proposal
from mmspec.drafters.walked import held_path
from mmspec.kv import KVCache
from mmspec.state import Placement, Preparation, Prompt
from mmspec.target import Target
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.draft_model.drafter import BoundDraftModel

CHUNK = 64  # ids caught up with in one forward
_EXPECTED_TOKENS = 256  # a row opens with room for so many beyond its prompt


class DraftModelSession(ModelSession["BoundDraftModel"]):
    """The cache holds a prompt and the first `num_cached` of the text's ids, and behind them, not
    committed, what the last proposal wrote. What touches the cache holds the drafter's lock."""

    def __init__(
        self, drafter: "BoundDraftModel", prompt: Prompt, wording: Wording, guide: DraftGuide
    ) -> None:
        super().__init__(drafter, guide)
        self.wording = wording
        self._prompt: Prompt | None = prompt
        self._prompt_ids: list[int] = []  # its text alone: what is read again past the context
        self._row = OwnRow(drafter.cache, drafter.lock)
        self._placement: Placement | None = None
        self._num_prompt = 0  # tokens of the cache before ids[0]; < 0 where those left
        self._num_seen = 0  # tokens of the target's text at the last proposal
        self.num_cached = 0
        self._written: TokenTree | None = None

    # The drafter's calls

    def preparation(self, num_tokens: int) -> Preparation | None:
        """Reading the prompt; later what was chosen while nobody asked, or, past the model's
        context, the newest half of it anew."""
        late = num_tokens - self._num_seen
        if self._prompt is None and late <= CHUNK and self._has_room(late):
            return None
        drafter, prompt = self._drafter, self._prompt
        most = drafter.num_readable
        anew = most // 2  # what is read where not all has room
        if prompt is None:
            num_read = late if self._has_room(late) else anew
        else:
            unseen = 0 if drafter.settings.images in ("give", "thin") else _num_placeholders(prompt)
            num_read = num_tokens - unseen if num_tokens - unseen <= most else anew
        return Preparation(
            tokens=drafter.size_share * num_read, lasts_tokens=max(most - num_tokens, anew)
        )

    def prepare(self, tokens: Sequence[int]) -> None:
        drafter = self._drafter
        # It may describe images: without the lock.
        read = None if self._prompt is None else drafter.prompts.read(self._prompt)
        with drafter.lock:
            if read is not None:
                self._prefill(read)
            self.catch_up(tokens)
            if self.wording.ids:
                drafter.read_late([self])

    def close(self) -> None:
        self._row.close()

    # A proposal, step by step

    @property
    def placement(self) -> Placement:
        assert self._placement is not None, "the prompt was not read"
        return self._placement

    @property
    def missing(self) -> list[int]:
        """Ids whose keys are not in the cache; the last is never there, for its logits are what
        comes next."""
        return self.wording.ids[self.num_cached :]

    def catch_up(self, tokens: Sequence[int]) -> None:
        """Keeps what the target took of the last proposal, drops the rest."""
        if self._prompt is not None:
            self._prefill(self._drafter.prompts.read(self._prompt))
        self._num_seen = len(tokens)
        unchanged = self.wording.read(tokens)
        written, self._written = self._written, None
        if not self.wording.ids:
            return
        if unchanged < self.num_cached:
            self.num_cached = unchanged
            if self._num_prompt + unchanged > 0:
                self._cache.truncate(self.placement.row, self._num_prompt + unchanged)
                if self._cache.is_lost(self.placement.row):
                    self._begin_again()
            else:  # back into what has left
                self._begin_again()
        elif written is not None:
            # Never the last id, whose logits are needed.
            path = held_path(written, self.missing[:-1])
            self._cache.commit({self.placement.row: path})
            self.num_cached += len(path)
        if not self._has_room(0):
            self._begin_again()

    def grown(self, growth: Growth, tokens: Sequence[int]) -> Proposal:
        self._written = growth.written
        return self.wording.propose(growth, tokens, self.calibration)

    @property
    def _cache(self) -> KVCache:
        return self._drafter.cache

    @property
    def _model(self) -> Target:
        return self._drafter.model

    def _prefill(self, read: ReadPrompt) -> None:
        self._prompt_ids = read.text_ids
        if read.prompt.num_tokens > self._drafter.num_readable:
            newest = read.text_ids[-(self._drafter.num_readable // 2) :]
            read = ReadPrompt.of_text(newest)
        if not self._row.is_open:
            self._row.open(read.prompt.num_tokens + _EXPECTED_TOKENS)
        row = self._row.number
        self._cache.truncate(row, 0)  # of one that failed
        prefill = self._model.prefill(read.prompt, self._cache, row, keep=read.keep)
        self._prompt = None
        self._placement = prefill.placement
        self._num_prompt = self._cache.length(row)

    def _has_room(self, more: int) -> bool:
        """Whether the text with so many ids more, and a tree behind it, fits the context."""
        last = self._num_prompt + len(self.wording.ids) + more
        return last + max(self.placement.position_offsets) <= self._drafter.num_readable

    def _begin_again(self) -> None:
        """Past the context the oldest tokens leave, and images with them: the newest half of it is
        read anew, from position 0 on. That is one more token computed for each that is drafted
        for, at most, and happens once in half a context."""
        row, ids = self.placement.row, self.wording.ids
        text = [*self._prompt_ids, *ids][-(self._drafter.num_readable // 2) :]
        self._cache.truncate(row, 0)
        prompt = ReadPrompt.of_text(text[:-1]).prompt
        self._placement = self._model.prefill(prompt, self._cache, row).placement
        self.num_cached = len(ids) - 1
        self._num_prompt = prompt.num_tokens - self.num_cached


def _num_placeholders(prompt: Prompt) -> int:
    """Tokens of the prompt that stand for its images and videos."""
    return sum(span.stop - span.start for span in prompt.media)
