"""CaPE: a chain, beside which the fewer candidates stand the surer the drafter is."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from matrix import model_of
from torch import Tensor

import mmspec
from mmspec.draft_guide import DraftGuide
from mmspec.drafters.growing.branching import BestBranching
from mmspec.drafters.growing.cape import Cape, CapeBranching
from mmspec.drafters.growing.growth import Growth
from mmspec.state import Placement
from mmspec.tree import TokenTree

VOCAB = 40


def logits_of(confidence: float, first: int) -> Tensor:
    """(1, vocab): `first` has that probability, the others share the rest, low ids more."""
    rest = torch.linspace(1.1, 0.9, VOCAB - 1, dtype=torch.float64)
    q = (1 - confidence) * rest / rest.sum()
    return torch.cat([q[:first], torch.tensor([confidence]), q[first:]]).log()[None]


def grown(
    confidences: Sequence[float], *, cape: Cape | None = None, **options: Any
) -> tuple[Growth, TokenTree]:
    """A tree under a drafter that is so sure of the tokens 7, 8, 9, ... of one greedy text."""
    cape = cape or Cape()
    settings: dict[str, Any] = {"max_depth": len(confidences), "min_confidence": 0.0, "budget": 64}
    best = BestBranching(
        DraftGuide(is_greedy=True, seed=0, sample=0, prompt_length=0),
        0,
        calibration=None,
        warp=lambda logits: logits,
        is_coupled=True,
        top_k=cape.most,
        width=4,
        **settings | options,
    )
    growth = Growth(Placement(0, (0,)), [3], CapeBranching(best, cape), "cape")
    for depth, confidence in enumerate(confidences):
        if not growth.is_growing:
            break
        growth.find(logits_of(confidence, 7 + depth))
        growth.settle(iter([value.tolist() for value in growth.unsettled]))
    return growth, growth.proposal.tree


@pytest.mark.parametrize(
    ("confidence", "beside"),
    [(0.05, 7), (0.3, 7), (0.301, 5), (0.6, 5), (0.61, 3), (0.8, 3), (0.81, 1), (1.0, 1)],
)
def test_beside_the_first_stand_as_many_as_was_published(confidence: float, beside: int) -> None:
    assert Cape().width(confidence) == 1 + beside


def test_a_chain_goes_on_along_the_first_and_the_others_are_leaves() -> None:
    """
    3 - 7 - 8 - 9 - 10     the chain
        |   |   |   |
       1 b  3 b 5 b 7 b    beside it
    """
    growth, tree = grown([0.9, 0.7, 0.5, 0.2])
    chain = [0]
    for count, token in zip([2, 4, 6, 8], [7, 8, 9, 10], strict=True):
        children = tree.children(chain[-1])
        assert tree.tokens[children[0]] == token and len(children) == count
        assert not any(tree.children(leaf) for leaf in children[1:])
        chain.append(children[0])
    assert growth.expanded == chain[:-1]
    tree.check_integrity(VOCAB)


def test_the_chain_ends_where_it_is_not_believed_in() -> None:
    growth, tree = grown([0.9, 0.5, 0.9, 0.9], min_confidence=0.5)
    assert growth.expanded == [0, 1], "0.9 * 0.5 is less than 0.5"
    assert len(tree.children(1)) == 6, "which says nothing against the leaves beside it"


def test_one_candidate_everywhere_is_a_set_chain() -> None:
    growth, tree = grown([0.9, 0.1], cape=Cape((0.5,), (1, 1)))
    assert growth.branching.is_set and tree.is_chain
    assert not grown([0.9], cape=Cape((0.5,), (2, 1)))[0].branching.is_set


def test_a_budget_keeps_the_likeliest_of_chain_and_leaves() -> None:
    _, tree = grown([0.9, 0.7, 0.5, 0.2])
    for budget in range(1, 12):
        kept = tree.prune(budget)
        assert kept.num_nodes == budget + 1
        likely = sorted(tree.cumulative_confidence[1:], reverse=True)[:budget]
        assert sorted(kept.cumulative_confidence[1:], reverse=True) == likely


def test_it_is_a_setting(tmp_path: Any) -> None:
    engine = mmspec.load(
        model_of("llama", "float64"),
        drafter="layer_skip",
        overrides=[
            "drafter.layer_skip.branching=cape",
            "drafter.layer_skip.cape_thresholds=[0.5]",
            "drafter.layer_skip.cape_widths=[3,1]",
        ],
    )
    (drafter,) = engine.drafters
    assert drafter.settings.trees.cape == Cape((0.5,), (3, 1))  # type: ignore[attr-defined]
