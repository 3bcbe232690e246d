"""Glide: which head drafts, and how its trees grow."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mmspec.drafters.glide.checkpoint import load
from mmspec.drafters.glide.drafter import BoundGlide
from mmspec.drafters.glide.module import GlideHead
from mmspec.drafters.growing.cape import THRESHOLDS, WIDTHS, BranchingName
from mmspec.drafters.growing.settings import Draw, TreeSettings
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
        cape_thresholds: Sequence[float] = THRESHOLDS,
        cape_widths: Sequence[int] = WIDTHS,
        top_k: int = 4,
        min_confidence: float = 0.1,
        draw: Draw = "coupled",
        profile: Sequence[int] = (),
    ) -> None:
        """`head`: a module, a folder or a hub name (at `revision`). `prompt_tokens`: of a prompt's
        end so many are read into the head's own KV; at most half of what it was trained on.

        Down to `max_depth`, as long as a path is believed to be accepted with `min_confidence`:
        branching="cape" is a chain, beside which the more candidates stand the less its head is
        sure (see `Cape`); "best" `top_k` children a node and nodes a level. With draw="sample"
        tokens are drawn from q, `profile[d]` children for each node of depth d; empty: a chain of
        `max_depth`.
        Raises ConfigError for values that make no sense, and as `checkpoint.load` does.
        """
        _check("prompt_tokens", prompt_tokens >= 1, prompt_tokens, "at least 1")
        self.trees = TreeSettings.checked(
            _NAME,
            max_depth=max_depth,
            top_k=top_k,
            min_confidence=min_confidence,
            branching=branching,
            cape_thresholds=cape_thresholds,
            cape_widths=cape_widths,
            draw=draw,
            profile=profile,
        )
        self.head = head if isinstance(head, GlideHead) else load(head, revision=revision)
        self.prompt_tokens = prompt_tokens

    def for_target(self, target: Target, inputs: InputProcessor | None) -> BoundGlide:
        """The drafter of one target. Raises ConfigError for a head that was made for another."""
        return BoundGlide(self, self.head, target)
