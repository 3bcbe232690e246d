"""DraftModel: any decoder as a drafter, and how its trees are to grow."""

from dataclasses import replace
from functools import partial
from typing import Literal, Unpack, get_args

from torch import nn

from mmspec.drafters.draft_model.captions import Describe
from mmspec.drafters.draft_model.drafter import BoundDraftModel
from mmspec.drafters.draft_model.prompts import ImagePolicy, takes_media
from mmspec.drafters.growing.cape import BranchingName
from mmspec.drafters.growing.settings import TreeOptions, TreeSettings
from mmspec.errors import ConfigError, ModelError, check_setting
from mmspec.inputs import InputProcessor
from mmspec.target import Target
from mmspec.target.linears import quick_linears
from mmspec.target.load import Processor, transformers_model
from mmspec.target.probe import probe
from mmspec.target.tower import quick_blocks

Images = Literal["auto", "give", "thin", "caption", "omit"]
EarlyBegin = Literal["auto", "never"]

_LEAST_CONTEXT = 32  # tokens that the draft model must be able to read

_NAME = "drafter.draft_model"
_check = partial(check_setting, _NAME)


class DraftModel:
    """A model that drafts: text-only or vision-language, with the target's tokenizer or another.

    Its proposals are the tree of the best tokens under the target's own noise (`draw` "coupled"),
    or, for verification rules that divide by q, tokens drawn from q in a fixed shape ("sample").
    """

    name = "draft_model"

    def __init__(
        self,
        model: nn.Module | Target,
        processor: Processor | None = None,
        *,
        max_depth: int = 6,
        top_k: int = 4,
        min_confidence: float = 0.1,
        branching: BranchingName = "best",
        images: Images = "auto",
        thin_keep: float = 0.25,
        caption: str | Describe | None = None,
        early_begin: EarlyBegin = "auto",
        **trees: Unpack[TreeOptions],
    ) -> None:
        """`model`: of transformers, a peft model round one, or a Target.

        `processor`: the draft model's own, or its tokenizer; None: its ids are the target's.

        `top_k` children a node and nodes a level, down to `max_depth`, as long as a path is
        believed to be accepted with `min_confidence`. With branching="cape" one node a level goes
        on, and how many stand beside it depends on the belief in it (see `Cape`).
        `images`: "give" the draft model sees them too; "thin" of each only an even share
        `thin_keep` of its tokens stays; "caption" a sentence in their place, `caption` itself, or
        what it makes of an image, or (None) the model's own words; "omit" leaves them out;
        "auto" gives them to a model that can see.
        `early_begin`: as `decode.early_begin`, for the draft model; a Target has its own.
        Raises ConfigError for values that make no sense, ModelError for a model that cannot draft.
        """
        self.trees = TreeSettings.checked(
            _NAME,
            trees,
            max_depth=max_depth,
            top_k=top_k,
            min_confidence=min_confidence,
            branching=branching,
        )
        _check("thin_keep", 0 < thin_keep <= 1, thin_keep, "in (0, 1]")
        known = get_args(EarlyBegin)
        _check("early_begin", early_begin in known, early_begin, f"one of {known}")
        _check("images", images in get_args(Images), images, f"one of {get_args(Images)}")
        if isinstance(model, Target):
            self.model, takes_trees = model, True
        else:
            self.model, takes_trees = _probed(model, begins_early=early_begin == "auto")
        if not takes_trees:
            self.trees = replace(self.trees, width=1)
            if self.trees.draws and max(self.trees.profile) > 1:
                raise ConfigError("drafter.draft_model.profile: this draft model takes chains only")
        self.images = _policy(images, self.model)
        self.inputs = processor and InputProcessor(processor, self.model.model.config)
        self.thin_keep = thin_keep
        self.caption = caption
        depth, context = self.trees.deepest, self.model.max_positions
        self.num_readable = 2**62 if context is None else context - depth - 1
        if self.num_readable < _LEAST_CONTEXT:
            raise ConfigError(
                f"drafter.draft_model.max_depth={depth}: the draft model's context holds {context} "
                f"tokens; expected at least {_LEAST_CONTEXT} beside the tree"
            )

    def for_target(self, target: Target, inputs: InputProcessor | None) -> "BoundDraftModel":
        """The drafter of one target. Raises ConfigError where texts cannot be aligned."""
        return BoundDraftModel(self, target, inputs)


def _probed(model: nn.Module, *, begins_early: bool) -> tuple[Target, bool]:
    """The model at work, and whether it takes trees or chains alone. Raises ModelError for one that
    takes neither."""
    loaded = transformers_model(model)
    blocks = quick_blocks(loaded, begins_early=begins_early)
    target, report = probe(loaded, linears=quick_linears(loaded), blocks=blocks)
    if report.shape == "plain":
        raise ModelError(
            f"{type(model).__name__} cannot draft: it does not score several tokens as it decodes "
            "one; take another draft model"
        )
    return target, report.shape == "tree"


def _policy(images: Images, model: Target) -> ImagePolicy:
    """What "auto" comes to. Raises ConfigError where a text-only model is to see."""
    sees = takes_media(model.model.config)
    if images in ("give", "thin") and not sees:
        raise ConfigError(
            f"drafter.draft_model.images={images!r}: {type(model.model).__name__} is a text-only "
            "model; expected auto, caption or omit"
        )
    return images if images != "auto" else "give" if sees else "omit"
