"""What is set of a drafter's trees."""

from typing import Any

import pytest

from mmspec.drafters.growing.cape import Cape
from mmspec.drafters.growing.settings import TreeSettings
from mmspec.errors import ConfigError

LEAST: dict[str, Any] = {"max_depth": 3, "top_k": 4, "min_confidence": 0.1}


def test_what_is_left_out_is_a_chain_and_as_wide_as_a_node() -> None:
    made = TreeSettings.checked("drafter.x", **LEAST)
    assert (made.width, made.profile, made.cape, made.draws) == (4, (1, 1, 1), None, False)
    assert made.deepest == 3
    drawn = TreeSettings.checked("drafter.x", **LEAST, draw="sample", profile=[2, 1, 1, 1], width=1)
    assert (drawn.width, drawn.draws, drawn.deepest) == (1, True, 4)
    assert TreeSettings.checked("drafter.x", **LEAST, branching="cape").cape == Cape()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_depth": 0}, r"drafter\.x\.max_depth=0: expected at least 1"),
        ({"top_k": 0}, r"drafter\.x\.top_k=0: expected at least 1"),
        ({"min_confidence": 1.5}, r"drafter\.x\.min_confidence=1\.5: expected in \[0, 1\]"),
        ({"draw": "beam"}, r"drafter\.x\.draw='beam': expected one of"),
        ({"profile": (2, 0)}, r"drafter\.x\.profile=\[2, 0\]: expected children a node, >= 1"),
        ({"branching": "wide"}, r"drafter\.x\.branching='wide': expected one of best, cape"),
    ],
)
def test_a_wrong_one_is_told_with_its_section(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TreeSettings.checked("drafter.x", **LEAST | wrong)
