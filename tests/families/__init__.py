"""Tiny seeded models of many families, and the prompts their processors would give them.

Nothing is downloaded: models come from configs, pixels from a generator.
"""

from .audio import DECODABLE_AUDIO
from .family import EOS_TOKEN, Family
from .hybrid import DECODABLE_HYBRID
from .prompts import Layout, layouts_of, prompt_inputs
from .text import BIASED_TEXT, DECODABLE_TEXT, REFUSED_TEXT
from .vision import DECODABLE_VISION

_EXCHANGEABLE = (*DECODABLE_TEXT, *DECODABLE_VISION, *DECODABLE_AUDIO, *DECODABLE_HYBRID)

FAMILIES: dict[str, Family] = {f.name: f for f in (*_EXCHANGEABLE, *BIASED_TEXT)}
"""The families that must decode."""

EXCHANGEABLE: tuple[str, ...] = tuple(f.name for f in _EXCHANGEABLE)
"""Those of them whose layers call an attention that can be exchanged for mmspec's."""

REFUSED: dict[str, Family] = {f.name: f for f in REFUSED_TEXT}
"""The families whose tokens cannot be scored as a tree: each needs a clear refusal."""

__all__ = [
    "EOS_TOKEN", "EXCHANGEABLE", "FAMILIES", "REFUSED", "Family", "Layout", "layouts_of",
    "prompt_inputs",
]  # fmt: skip
