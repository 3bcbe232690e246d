"""BoundDraftModel: a draft model at work for one target, the cache of all its sessions with it."""

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from mmspec.draft_guide import DraftGuide
from mmspec.drafters.base import DraftSession
from mmspec.drafters.draft_model.alignment import TextAlignment, aligned
from mmspec.drafters.draft_model.captions import Captions, describer
from mmspec.drafters.draft_model.prompts import PromptReader, can_see, takes_same_inputs
from mmspec.drafters.draft_model.session import CHUNK, DraftModelSession
from mmspec.drafters.draft_model.vocabulary import shared_vocabulary
from mmspec.drafters.draft_model.wording import SharedTexts
from mmspec.drafters.forwards import ForwardCost, num_weights
from mmspec.drafters.growing.trees import ByModel, GrowingTrees, Start
from mmspec.errors import ConfigError
from mmspec.inputs import InputProcessor
from mmspec.state import Prefill, Prompt
from mmspec.target import Target
from mmspec.tree import TokenTree

if TYPE_CHECKING:
    from mmspec.drafters.draft_model.model import DraftModel

_TAKEN_BACK = 8  # ids that another wording of a text's end replaces, but seldom more


class BoundDraftModel(ByModel):
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
        self._texts = texts = _texts(settings, target, target_inputs)
        # Of another tokenizer's text the newest ids may turn out to be others.
        self.cache = self.model.new_cache(num_recent=0 if texts.shares_ids else _TAKEN_BACK)
        self._trees = GrowingTrees(
            settings.trees,
            self.cost,
            self.name,
            target.vocab_size,
            crop=texts.crop,
            is_coupled=texts.shares_ids,
        )
        config, target_config = self.model.model.config, target.model.config
        has_captions = settings.images == "caption"
        self.prompts = PromptReader(
            texts,
            settings.images,
            takes_inputs=texts.shares_ids and takes_same_inputs(config, target_config),
            inputs=settings.inputs,
            target_inputs=target_inputs,
            captions=self._captions(target, target_inputs) if has_captions else None,
            thin_keep=settings.thin_keep,
        )

    def start(self, prompt: Prompt, prefill: Prefill, guide: DraftGuide) -> DraftModelSession:
        return DraftModelSession(self, prompt, self._texts.wording(prompt), guide)

    def propose_together(
        self, sessions: Sequence[DraftSession], texts: Sequence[Sequence[int]], budget: int
    ) -> list[TokenTree]:
        """One tree a session; a level is one forward over the new nodes of all of them."""
        own = [cast(DraftModelSession, session) for session in sessions]
        with self.lock:
            for session, tokens in zip(own, texts, strict=True):
                session.catch_up(tokens)
            ready = [s for s in own if s.wording.can_continue and s.wording.ids]
            self.read_late(ready)
            starts = [Start(s.placement, s.missing) if s in ready else None for s in own]
            return self._trees.grown(self.model, self.cache, own, texts, starts, budget)

    def read_late(self, sessions: Sequence[DraftModelSession]) -> None:
        """Reads what was chosen while nobody asked, all rows together, in chunks."""
        while late := [s for s in sessions if len(s.missing) > CHUNK]:
            chunks = [session.missing[:CHUNK] for session in late]
            trees = [TokenTree.chain(c[0], c[1:], (1.0,) * (CHUNK - 1), "") for c in chunks]
            self.model.score(trees, self.cache, [session.placement for session in late])
            self.cache.commit({session.placement.row: range(CHUNK) for session in late})
            for session in late:
                session.num_cached += CHUNK

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


def _texts(
    settings: "DraftModel", target: Target, target_inputs: InputProcessor | None
) -> SharedTexts | TextAlignment:
    """Raises ConfigError where the draft model has another tokenizer, and texts cannot be aligned
    or the settings need shared ids."""
    draft = settings.model
    tokenizer = target_inputs and target_inputs.tokenizer
    own = settings.inputs and settings.inputs.tokenizer
    vocabulary = shared_vocabulary(
        tokenizer,
        own,
        target_size=target.vocab_size,
        draft_size=draft.vocab_size,
        readable=draft.num_embeddings,
    )
    if vocabulary is not None:
        return SharedTexts(vocabulary, own or tokenizer)
    assert tokenizer is not None and own is not None
    if settings.trees.draws:
        raise ConfigError(
            "drafter.draft_model.draw='sample': the draft model has another tokenizer, so its q is "
            "not over the target's tokens; expected draw='coupled'"
        )
    return aligned(tokenizer, own)
