"""A head's levels, recorded and repeated: the same drafts as without."""

import warnings

import pytest
from graphed import graphed
from matrix import Cell, run_cell

from mmspec.drafters.eagle.drafter import BoundEagle
from mmspec.drafters.heads import HeadGraphs


@pytest.mark.parametrize(
    ("drafter", "family", "layout", "sampling", "batch"),
    [
        ("eagle1", "llama", "text", "greedy", 3),
        ("eagle3", "llama", "text", "t1", 1),
        ("eagle3", "qwen2_5_vl", "image_middle", "warped", 3),
    ],
)
def test_recorded_levels_draft_the_same(
    drafter: str,
    family: str,
    layout: str,
    sampling: str,
    batch: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = Cell(family, drafter, sampling, batch, layout)
    expected, made = run_cell(cell), list[HeadGraphs]()
    right = BoundEagle.__init__

    def noted(self: BoundEagle, *args: object) -> None:
        right(self, *args)  # type: ignore[arg-type]
        if self.graphs is not None:
            made.append(self.graphs)

    monkeypatch.setattr(BoundEagle, "__init__", noted)
    assert not made, "on a CPU nothing is recorded"
    with graphed(), warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = run_cell(cell)
    assert not outcome.mismatches, "; ".join(outcome.mismatches)
    assert outcome.accepted == expected.accepted > 0
    (graphs,) = made
    assert graphs.info.replayed > 10 and graphs.info.num_graphs > 2
    assert not graphs.info.given_up
