"""Cascade: which drafter stands below the compressed cache, and how far the two go together."""

from copy import copy
from dataclasses import replace
from functools import partial

from mmspec.drafters.base import Drafter, DrafterForTarget, TappingDrafter
from mmspec.drafters.cascade.drafter import BoundCascade
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.glide import Glide
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.errors import ConfigError, check_setting
from mmspec.inputs import InputProcessor
from mmspec.target import Target

_NAME = "drafter.cascade"


class Cascade:
    """The lower drafter's tree is verified over the view, by the code that verifies any tree, and
    what is accepted is handed on; then the lower one is asked again, from there."""

    name = "cascade"

    def __init__(
        self,
        lower: Drafter | DrafterForTarget,
        middle: CompressedKV | None = None,
        *,
        max_depth: int = 24,
        max_forwards: int = 4,
        lower_nodes: int = 16,
    ) -> None:
        """`middle` says what the view shows, its `min_confidence` and how it draws; None: the
        defaults. A proposal is a chain of at most `max_depth` tokens from at most `max_forwards`
        forwards over the view, each of which verifies up to `lower_nodes` nodes of `lower`. Under
        draw="sample" it is as long as `max_depth` and the text's room allow, whatever forwards that
        takes.
        Raises ConfigError for values that make no sense.
        """
        check = partial(check_setting, _NAME)
        check("max_depth", max_depth >= 1, max_depth, "at least 1")
        check("max_forwards", max_forwards >= 1, max_forwards, "at least 1")
        check("lower_nodes", lower_nodes >= 1, lower_nodes, "at least 1")
        if isinstance(lower, CompressedKV | Cascade):
            raise ConfigError(f"{_NAME}.lower={lower.name}: expected one cheaper than the view")
        if isinstance(lower, Glide | LayerSkip):
            raise ConfigError(
                f"{_NAME}.lower={lower.name}: expected one that reads no KV of the target, which "
                "has not read yet what is asked about"
            )
        self.lower = lower
        self.middle = copy(middle or CompressedKV())
        # The accepted tokens and the next tree lie behind the view together.
        self.middle.size = replace(self.middle.size, room=max_depth + 1 + lower_nodes)
        self.max_depth = max_depth
        self.max_forwards = max_forwards
        self.lower_nodes = lower_nodes

    def for_target(self, target: Target, inputs: InputProcessor | None) -> BoundCascade:
        """The drafter of one target. Raises ConfigError where `lower` does not fit."""
        lower = self.lower
        if isinstance(lower, DrafterForTarget):
            lower = lower.for_target(target, inputs)
        if isinstance(lower, TappingDrafter) and lower.taps.whole_prompt:
            raise ConfigError(
                f"{_NAME}.lower={lower.name}: it reads the target's states of every token, and the "
                "view's forwards have none; expected one that copies, or a model of its own"
            )
        return BoundCascade(self, lower, self.middle.for_target(target, inputs), target)
