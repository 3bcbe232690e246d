"""What is set of a drafter's trees."""

from collections.abc import Callable
from typing import Any

import pytest
from eagle_heads import unfitted
from glide_heads import drawn
from matrix import model_of
from ragged import target_of

from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.eagle import Eagle
from mmspec.drafters.glide import Glide
from mmspec.drafters.growing.cape import Cape
from mmspec.drafters.growing.settings import TreeOptions, TreeSettings
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.errors import ConfigError

LEAST: dict[str, Any] = {"max_depth": 3, "top_k": 4, "min_confidence": 0.1}


def test_what_is_left_out_is_a_chain_and_as_wide_as_a_node() -> None:
    made = TreeSettings.checked("drafter.x", {}, **LEAST)
    assert (made.width, made.profile, made.cape, made.draws) == (4, (1, 1, 1), None, False)
    assert made.deepest == 3
    options: TreeOptions = {"draw": "sample", "profile": [2, 1, 1, 1]}
    drawn = TreeSettings.checked("drafter.x", options, **LEAST, width=1)
    assert (drawn.width, drawn.draws, drawn.deepest) == (1, True, 4)
    assert TreeSettings.checked("drafter.x", {}, **LEAST, branching="cape").cape == Cape()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_depth": 0}, r"max_depth=0: expected at least 1"),
    ({"top_k": 0}, r"top_k=0: expected at least 1"),
    ({"min_confidence": 1.5}, r"min_confidence=1\.5: expected in \[0, 1\]"),
    ({"draw": "beam"}, r"draw='beam': expected one of"),
    ({"profile": (2, 0)}, r"profile=\[2, 0\]: expected children a node, >= 1"),
    ({"branching": "wide"}, r"branching='wide': expected one of best, cape"),
    ({"cape_thresholds": [0.6, 0.3]}, r"cape_thresholds=\[0.6, 0.3\]: expected increasing"),
    ({"cape_thresholds": [0.5, 1.0]}, r"expected increasing numbers within \(0, 1\)"),
    ({"cape_widths": [3, 2]}, r"cape_widths=\[3, 2\]: expected one width of 1 or"),
    ({"cape_widths": [4, 3, 2, 0]}, r"for each of the 4 intervals between 3 thresholds"),
]
GROWN: dict[str, Callable[..., object]] = {
    "draft_model": lambda **options: DraftModel(target_of("llama"), **options),
    "compressed_kv": CompressedKV,
    "layer_skip": LayerSkip,
    "eagle": lambda **options: Eagle(unfitted(model_of("llama", "float64"), 1), **options),
    "glide": lambda **options: Glide(drawn(target_of("llama")), **options),
}


@pytest.mark.parametrize("name", GROWN)
def test_a_wrong_one_is_told_with_its_section(name: str) -> None:
    for wrong, message in WRONG:
        where = "" if message.startswith(("for", "expected")) else rf"drafter\.{name}\."
        with pytest.raises(ConfigError, match=where + message):
            GROWN[name](**wrong)


@pytest.mark.parametrize("name", GROWN)
def test_one_that_is_not_there_is_a_wrong_argument(name: str) -> None:
    for wrong in ("max_deph", *([] if name == "compressed_kv" else ["width"])):
        with pytest.raises(TypeError, match=rf"drafter\.{name} got .* argument '{wrong}'"):
            GROWN[name](**{wrong: 3})
