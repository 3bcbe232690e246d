"""Glide: which head drafts, and how its trees grow."""

from functools import partial
from pathlib import Path
from typing import Unpack

from mmspec.drafters.glide.checkpoint import load
from mmspec.drafters.glide.drafter import BoundGlide
from mmspec.drafters.glide.module import GlideHead
from mmspec.drafters.growing.cape import BranchingName
from mmspec.drafters.growing.settings import TreeOptions, TreeSettings
from mmspec.errors import check_setting
from mmspec.inputs import InputProcessor
from mmspec.target import Target

_NAME = "drafter.glide"
_check = partial(check_setting, _NAME)


class Glide:
    """A trained head of a layer or so that sees the target's own KV: the whole context, images
    among it, for the cost of attention (GliDe with CaPE, arXiv 2402.02082)."""

    name = "glide"

    def __init__(
        self,
        head: GlideHead | str | Path,
        *,
        revision: str | None = None,
        prompt_tokens: int = 1024,
        max_depth: int = 5,
        branching: BranchingName = "cape",
        top_k: int = 4,
        min_confidence: float = 0.1,
        **trees: Unpack[TreeOptions],
    ) -> None:
        """`head`: a module, a folder or a hub name (at `revision`). `prompt_tokens`: of a prompt's
        end so many are read into the head's own KV; at most half of what it was trained on.

        Down to `max_depth`, as long as a path is believed to be accepted with `min_confidence`:
        branching="cape" is a chain, beside which the more candidates stand the less its head is
        sure (see `Cape`); "best" `top_k` children a node and nodes a level.
        Raises ConfigError for values that make no sense, and as `checkpoint.load` does.
        """
        _check("prompt_tokens", prompt_tokens >= 1, prompt_tokens, "at least 1")
        self.trees = TreeSettings.checked(
            _NAME,
            trees,
            max_depth=max_depth,
            top_k=top_k,
            min_confidence=min_confidence,
            branching=branching,
        )
        self.head = head if isinstance(head, GlideHead) else load(head, revision=revision)
        self.prompt_tokens = prompt_tokens

    def for_target(self, target: Target, inputs: InputProcessor | None) -> BoundGlide:
        """The drafter of one target. Raises ConfigError for a head that was made for another."""
        return BoundGlide(self, self.head, target)
