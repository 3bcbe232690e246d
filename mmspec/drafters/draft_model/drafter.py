"""BoundDraftModel: a draft model at work for one target, the cache of all its sessions with it."""

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmspec.drafters.base import DraftSession
from mmspec.drafters.draft_model.alignment import TextAlignment, aligned
from mmspec.drafters.draft_model.captions import Captions, describer
from mmspec.drafters.draft_model.prompts import (
    PromptReader,
    can_see,
    takes_same_inputs,
)
from mmspec.drafters.draft_model.session import CHUNK, DraftModelSession
from mmspec.drafters.draft_model.vocabulary import (
    SharedTexts,
    SharedVocabulary,
    shared_vocabulary,
)
from mmspec.drafters.draft_model.wording import SharedWording, Wording
from mmspec.drafters.forwards import ForwardCost, num_weights
from mmspec.drafters.growing.chosen import branching_of, proposed
from mmspec.drafters.growing.growth import Branching, Growth
from mmspec.drafters.growing.together import grow
from mmspec.errors import ConfigError
from mmspec.inputs import InputProcessor
from mmspec.sampling import DraftGuide
from mmspec.state import Prefill, Prompt
from mmspec.target import Target
from mmspec.target.graphs import ScoreGraphs
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.draft_model.model import DraftModel

_TAKEN_BACK = 8  # ids that another wording of a text's end replaces, but seldom more


class BoundDraftModel:
    """Drafts for one target. One cache holds the rows of all its sessions, whatever call or thread
    they belong to; `lock` is held while it is read or written."""

    name = "draft_model"

    def __init__(
        self, settings: "DraftModel", target: Target, target_inputs: InputProcessor | None
    ) -> None:
        self.settings = settings
        self.model = settings.model
        self.num_readable = settings.num_readable
        self.draws = settings.trees.draws
        self.model.use_graphs_as(target)
        self.lock = threading.RLock()
        self.cost = ForwardCost()
        # Of the target's:
        self.size_share = num_weights(self.model.model) / num_weights(target.model)
        tokenizer = target_inputs and target_inputs.tokenizer
        own_tokenizer = settings.inputs and settings.inputs.tokenizer
        self._vocabulary = _vocabulary(self.model, target, own_tokenizer, tokenizer)
        self._alignment: TextAlignment | None = None
        if self._vocabulary is None:
            assert tokenizer is not None and own_tokenizer is not None
            if settings.trees.draws:
                raise ConfigError(
                    "drafter.draft_model.draw='sample': the draft model has another tokenizer, so "
                    "its q is not over the target's tokens; expected draw='coupled'"
                )
            self._alignment = aligned(tokenizer, own_tokenizer)
        # Of another tokenizer's text the newest ids may turn out to be others.
        self.cache = self.model.new_cache(num_recent=_TAKEN_BACK if self._alignment else 0)
        self._vocab_size = target.vocab_size
        config, target_config = self.model.model.config, target.model.config
        texts = (
            SharedTexts(self._vocabulary, own_tokenizer or tokenizer)
            if self._vocabulary is not None
            else self._alignment
        )
        assert texts is not None
        self.prompts = PromptReader(
            texts,
            settings.images,
            takes_inputs=self._alignment is None and takes_same_inputs(config, target_config),
            inputs=settings.inputs,
            target_inputs=target_inputs,
            captions=self._captions(target, target_inputs)
            if settings.images == "caption"
            else None,
            thin_keep=settings.thin_keep,
        )

    @property
    def recorded(self) -> Sequence[ScoreGraphs]:
        """The graphs of its forwards, where they are recorded."""
        return [] if self.model.graphs is None else [self.model.graphs]

    def free_recorded(self) -> None:
        self.model.free()

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> DraftModelSession:
        wording: Wording
        if self._alignment is not None:
            wording = self._alignment.wording(prompt)
        else:
            assert self._vocabulary is not None
            wording = SharedWording(self._vocabulary, prompt.num_tokens)
        return DraftModelSession(self, prompt, wording, guide)

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session; a level is one forward over the new nodes of all of them."""
        own = [cast(DraftModelSession, session) for session in sessions]
        with self.lock:
            for session, tokens in zip(own, texts, strict=True):
                session.catch_up(tokens)
            ready = [s for s in own if budget and s.wording.can_continue and s.wording.ids]
            self.read_late(ready)
            growths = {
                id(session): Growth(
                    session.placement,
                    session.missing,
                    self._branching(session, len(tokens) - 1, budget),
                    self.name,
                )
                for session, tokens in zip(own, texts, strict=True)
                if session in ready
            }
            grow(self.model, self.cache, list(growths.values()), cost=self.cost)
            return [
                self._proposed(session, growths.get(id(session)), tokens, budget)
                for session, tokens in zip(own, texts, strict=True)
            ]

    def read_late(self, sessions: Sequence[DraftModelSession]) -> None:
        """Reads what was chosen while nobody asked, all rows together, in chunks."""
        while late := [s for s in sessions if len(s.missing) > CHUNK]:
            chunks = [session.missing[:CHUNK] for session in late]
            trees = [TokenTree.chain(c[0], c[1:], (1.0,) * (CHUNK - 1), "") for c in chunks]
            self.model.score(trees, self.cache, [session.placement for session in late])
            self.cache.commit({session.placement.row: range(CHUNK) for session in late})
            for session in late:
                session.num_cached += CHUNK

    def _branching(self, session: DraftModelSession, index: int, budget: int) -> Branching:
        return branching_of(
            self.settings.trees,
            session,
            index,
            budget=budget,
            cost=self.cost,
            warp=self._warp(session.guide),
            is_coupled=self._alignment is None,
        )

    def _warp(self, guide: DraftGuide) -> Callable[[Tensor], Tensor]:
        """Raw logits (nodes, draft vocab) -> warped as the target's, over what both know."""
        vocabulary = self._vocabulary
        if vocabulary is None:
            return guide.warp
        return lambda logits: guide.warp(vocabulary.crop(logits))

    def _proposed(
        self,
        session: DraftModelSession,
        growth: Growth | None,
        tokens: Sequence[int],
        budget: int,
    ) -> TokenTree:
        if growth is None:
            return TokenTree.root(tokens[-1])
        proposal = session.wording.propose(growth, tokens, session.calibration)
        session.wrote(growth.written.keep(range(growth.num_written)))
        return proposed(
            growth,
            self.settings.trees,
            session,
            budget=budget,
            vocab_size=self._vocab_size,
            proposal=proposal,
        )

    def _captions(self, target: Target, target_inputs: InputProcessor | None) -> Captions:
        """The given ones, or what the smaller of the models that can see says."""
        settings = self.settings
        if settings.caption is not None:
            return Captions(settings.caption)
        for model, inputs in ((self.model, settings.inputs), (target, target_inputs)):
            if inputs is not None and can_see(model.model.config):
                return Captions(describer(model, inputs))
        raise ConfigError(
            "drafter.draft_model.images='caption': neither model can see and has a processor; "
            "expected drafter.draft_model.caption, a text for all images"
        )


def _vocabulary(
    draft: Target,
    target: Target,
    own: PreTrainedTokenizerBase | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> SharedVocabulary | None:
    return shared_vocabulary(
        tokenizer,
        own,
        target_size=target.vocab_size,
        draft_size=draft.vocab_size,
        readable=draft.num_embeddings,
    )
