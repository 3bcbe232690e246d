"""TreeSettings: how a drafter's trees grow."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypedDict, get_args

from mmspec.drafters.growing.cape import THRESHOLDS, WIDTHS, BranchingName, Cape, cape_of
from mmspec.errors import check_setting

Draw = Literal["coupled", "sample"]


class TreeOptions(TypedDict, total=False):
    """What a user may set of trees beside what each drafter has a default of its own for."""

    cape_thresholds: Sequence[float]  # with branching="cape": as `Cape` has them
    cape_widths: Sequence[int]
    draw: Draw  # "sample": tokens are drawn from q, for rules that divide by it
    profile: Sequence[int]  # then: children of each node by its depth; (): a chain of `max_depth`


@dataclass(frozen=True)
class TreeSettings:
    """Down to `max_depth`, as long as a path is believed to be accepted with `min_confidence`."""

    max_depth: int
    top_k: int  # children a node
    width: int  # nodes a level that get children
    min_confidence: float
    cape: Cape | None  # one node a level goes on, and as many stand beside it
    draw: Draw  # "sample": tokens are drawn from q, for rules that divide by it
    profile: tuple[int, ...]  # children of each node by its depth, where they are drawn

    @staticmethod
    def checked(
        where: str,
        options: TreeOptions,
        *,
        max_depth: int,
        top_k: int,
        min_confidence: float,
        width: int | None = None,
        branching: BranchingName = "best",
    ) -> "TreeSettings":
        """Of what a user has set in `where`, a section of the config. `width` None: `top_k`.
        Raises ConfigError for values that make no sense, TypeError for `options` that there are
        not: they were a drafter's keywords."""
        for name in options.keys() - TreeOptions.__annotations__.keys():
            raise TypeError(f"{where} got an unexpected keyword argument {name!r}")
        check, draw = partial(check_setting, where), options.get("draw", "coupled")
        profile = options.get("profile", ())
        cape = cape_of(
            branching,
            thresholds=options.get("cape_thresholds", THRESHOLDS),
            widths=options.get("cape_widths", WIDTHS),
            where=where,
        )
        check("max_depth", max_depth >= 1, max_depth, "at least 1")
        check("top_k", top_k >= 1, top_k, "at least 1")
        check("min_confidence", 0 <= min_confidence <= 1, min_confidence, "in [0, 1]")
        check("draw", draw in get_args(Draw), draw, f"one of {get_args(Draw)}")
        check("profile", all(n >= 1 for n in profile), list(profile), "children a node, >= 1")
        return TreeSettings(
            max_depth=max_depth,
            top_k=top_k,
            width=top_k if width is None else width,
            min_confidence=min_confidence,
            cape=cape,
            draw=draw,
            profile=tuple(profile) or (1,) * max_depth,
        )

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn from q, but for greedy requests."""
        return self.draw == "sample"

    @property
    def deepest(self) -> int:
        """Levels that a tree has at most, however it grows."""
        return max(self.max_depth, len(self.profile))
