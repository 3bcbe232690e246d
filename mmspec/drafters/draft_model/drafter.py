"""DraftModel: any decoder as a drafter, and the same bound to one target."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, cast, get_args

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmspec.drafters.base import DraftSession
from mmspec.drafters.draft_model.alignment import TextAlignment, aligned
from mmspec.drafters.draft_model.branching import (
    BestBranching,
    DrawnBranching,
    affordable,
)
from mmspec.drafters.draft_model.captions import Captions, Describe, describer
from mmspec.drafters.draft_model.growth import Branching, Growth, grow
from mmspec.drafters.draft_model.prompts import (
    ImagePolicy,
    PromptReader,
    can_see,
    takes_same_inputs,
)
from mmspec.drafters.draft_model.session import DraftModelSession
from mmspec.drafters.draft_model.vocabulary import (
    SharedTexts,
    SharedVocabulary,
    shared_vocabulary,
)
from mmspec.drafters.draft_model.wording import SharedWording, Wording
from mmspec.errors import ConfigError, ModelError
from mmspec.inputs import InputProcessor
from mmspec.sampling import DraftGuide
from mmspec.state import Prefill, Prompt
from mmspec.target import Target
from mmspec.target.load import Processor
from mmspec.target.probe import probe
from mmspec.tree import TokenTree

Images = Literal["auto", "give", "thin", "caption", "omit"]
Draw = Literal["coupled", "sample"]

_CHUNK = 64  # ids caught up with in one forward
_LEAST_CONTEXT = 32  # tokens that the draft model must be able to read


class DraftModel:
    """A model that drafts: text-only or vision-language, with the target's tokenizer or another.

    Its proposals are the tree of the best tokens under the target's own noise (`draw` "coupled"),
    or, for verification rules that divide by q, tokens drawn from q in a fixed shape ("sample").
    """

    name = "draft_model"

    def __init__(
        self,
        model: PreTrainedModel | Target,
        processor: Processor | None = None,
        *,
        max_depth: int = 6,
        top_k: int = 4,
        min_confidence: float = 0.1,
        draw: Draw = "coupled",
        profile: Sequence[int] = (),
        images: Images = "auto",
        thin_keep: float = 0.25,
        caption: str | Describe | None = None,
    ) -> None:
        """`processor`: the draft model's own, or its tokenizer; None: its ids are the target's.

        `top_k` children a node and nodes a level, down to `max_depth`, as long as a path is
        believed to be accepted with `min_confidence`. With draw="sample" `profile[d]` children for
        each node of depth d; empty: a chain of `max_depth`.
        `images`: "give" the draft model sees them too; "thin" of each only an even share
        `thin_keep` of its tokens stays; "caption" a sentence in their place, `caption` itself, or
        what it makes of an image, or (None) the model's own words; "omit" leaves them out;
        "auto" gives them to a model that can see.
        Raises ConfigError for values that make no sense, ModelError for a model that cannot draft.
        """
        _check("max_depth", max_depth >= 1, max_depth, "at least 1")
        _check("top_k", top_k >= 1, top_k, "at least 1")
        _check("min_confidence", 0 <= min_confidence <= 1, min_confidence, "in [0, 1]")
        _check("thin_keep", 0 < thin_keep <= 1, thin_keep, "in (0, 1]")
        _check("draw", draw in get_args(Draw), draw, f"one of {get_args(Draw)}")
        _check("images", images in get_args(Images), images, f"one of {get_args(Images)}")
        _check("profile", all(n >= 1 for n in profile), list(profile), "children a node, >= 1")
        if isinstance(model, Target):
            self.model, self.takes_trees = model, True
        else:
            self.model, report = probe(model)
            self.takes_trees = report.shape == "tree"
            if report.shape == "plain":
                raise ModelError(
                    f"{type(model).__name__} cannot draft: it does not score several tokens as it "
                    "decodes one; take another draft model"
                )
        sees = can_see(self.model.model.config)
        if images in ("give", "thin") and not sees:
            raise ConfigError(
                f"drafter.draft_model.images={images!r}: {type(self.model.model).__name__} is a "
                "text-only model; expected auto, caption or omit"
            )
        self.images: ImagePolicy = images if images != "auto" else "give" if sees else "omit"
        self.inputs = processor and InputProcessor(processor, self.model.model.config)
        self.max_depth = max_depth
        self.top_k = top_k
        self.min_confidence = min_confidence
        self.draw = draw
        self.profile = tuple(profile) or (1,) * max_depth
        self.thin_keep = thin_keep
        self.caption = caption
        depth = max(max_depth, len(self.profile))
        context = self.model.max_positions
        self.num_readable = 2**62 if context is None else context - depth - 1
        if self.num_readable < _LEAST_CONTEXT:
            raise ConfigError(
                f"drafter.draft_model.max_depth={depth}: the draft model's context holds {context} "
                f"tokens; expected at least {_LEAST_CONTEXT} beside the tree"
            )
        if draw == "sample" and not self.takes_trees and max(self.profile) > 1:
            raise ConfigError("drafter.draft_model.profile: this draft model takes chains only")

    def for_target(self, target: Target, inputs: InputProcessor | None) -> "BoundDraftModel":
        """The drafter of one target. Raises ConfigError where texts cannot be aligned."""
        return BoundDraftModel(self, target, inputs)


class BoundDraftModel:
    """Drafts for one target. One cache holds the rows of all its sessions, whatever call or thread
    they belong to; `lock` is held while it is read or written."""

    name = DraftModel.name

    def __init__(
        self, settings: DraftModel, target: Target, target_inputs: InputProcessor | None
    ) -> None:
        self.settings = settings
        self.model = settings.model
        self.num_readable = settings.num_readable
        self.draws = settings.draw == "sample"
        self.cache = self.model.new_cache()
        self.lock = threading.RLock()
        tokenizer = target_inputs and target_inputs.tokenizer
        own_tokenizer = settings.inputs and settings.inputs.tokenizer
        self._vocabulary = _vocabulary(self.model, target, own_tokenizer, tokenizer)
        self._alignment: TextAlignment | None = None
        if self._vocabulary is None:
            assert tokenizer is not None and own_tokenizer is not None
            if settings.draw == "sample":
                raise ConfigError(
                    "drafter.draft_model.draw='sample': the draft model has another tokenizer, so "
                    "its q is not over the target's tokens; expected draw='coupled'"
                )
            self._alignment = aligned(tokenizer, own_tokenizer)
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
            self._score_late(ready)
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
            grow(self.model, self.cache, list(growths.values()))
            return [
                self._proposed(session, growths.get(id(session)), tokens, budget)
                for session, tokens in zip(own, texts, strict=True)
            ]

    def free(self, row: int) -> None:
        """Closes a row of the cache; the last one gives the memory back."""
        self.cache.close(row)
        if not self.cache.rows:
            self.cache.release()

    def _score_late(self, sessions: Sequence[DraftModelSession]) -> None:
        """Reads what was chosen while nobody asked, all rows together, in chunks."""
        while late := [s for s in sessions if len(s.missing) > _CHUNK]:
            chunks = [session.missing[:_CHUNK] for session in late]
            trees = [TokenTree.chain(c[0], c[1:], (1.0,) * (_CHUNK - 1), "") for c in chunks]
            self.model.score(trees, self.cache, [session.placement for session in late])
            self.cache.commit({session.placement.row: range(_CHUNK) for session in late})
            for session in late:
                session.num_cached += _CHUNK

    def _branching(self, session: DraftModelSession, index: int, budget: int) -> Branching:
        settings, guide = self.settings, session.guide
        if settings.draw == "sample" and not guide.is_greedy:
            profile = affordable(settings.profile, budget)
            return DrawnBranching(
                guide, index, warp=self._warp(guide), profile=profile, first_draw=session.num_draws
            )
        is_aligned = self._alignment is not None
        return BestBranching(
            guide,
            index,
            # Of another tokenizer's tokens nobody tells what became of them.
            calibration=None if is_aligned else session.calibration,
            warp=self._warp(guide),
            is_coupled=not is_aligned,
            top_k=settings.top_k,
            max_depth=min(settings.max_depth, budget),
            min_confidence=settings.min_confidence,
            budget=budget,
            width=settings.top_k if settings.takes_trees else 1,
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
        session.remember(growth, proposal)
        tree = proposal.tree
        if isinstance(growth.branching, DrawnBranching):
            session.num_draws = growth.branching.num_draws
            return replace(tree, q=growth.branching.q_of(growth, self._vocab_size))
        likely = tree.cumulative_confidence
        kept = [n for n in tree.best(budget) if likely[n] >= self.settings.min_confidence]
        return tree.keep(kept)

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


def _check(name: str, is_right: bool, got: object, expected: str) -> None:
    if not is_right:
        raise ConfigError(f"drafter.draft_model.{name}={got!r}: expected {expected}")
