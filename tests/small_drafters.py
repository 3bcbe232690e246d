"""A small drafter of each name that a config may give, for the llama of the families. It drafts
whenever it can; what may be set of it beside (`draw`, `profile`) is passed on."""

from collections.abc import Callable
from typing import Any

from draft_models import stranger
from eagle_heads import fitted
from glide_heads import drawn
from matrix import dflash, model_of
from medusa_heads import unfitted
from mtp_layers import mtp
from ragged import target_of

from mmspec.build_drafters import AnyDrafter
from mmspec.drafters.base import Drafter, DrafterForTarget
from mmspec.drafters.cascade import Cascade
from mmspec.drafters.compressed_kv import CompressedKV
from mmspec.drafters.dflash import DFlash
from mmspec.drafters.draft_model import DraftModel
from mmspec.drafters.eagle import Eagle
from mmspec.drafters.glide import Glide
from mmspec.drafters.layer_skip import LayerSkip
from mmspec.drafters.lookahead import Lookahead
from mmspec.drafters.medusa import Medusa
from mmspec.drafters.prompt_lookup import PromptLookup
from mmspec.drafters.retrieval import Retrieval
from mmspec.drafters.token_recycling import TokenRecycling

VIEW: dict[str, Any] = {"budget": 12, "recent": 5, "max_share": 1.0, "min_confidence": 0.0}


def model() -> Any:
    return model_of("llama", "float64")


def eager_lookup() -> PromptLookup:
    return PromptLookup(min_match=1, min_confidence=0.0, max_depth=6)


# What stands behind a "/" is another one of that name.
SMALL: dict[str, Callable[..., AnyDrafter]] = {
    "prompt_lookup": eager_lookup,
    "retrieval": lambda: Retrieval(
        sources=["online", "generated"], min_match=1, min_confidence=0.0, max_depth=6
    ),
    "draft_model": lambda **o: DraftModel(stranger(119), max_depth=3, min_confidence=0.0, **o),
    "compressed_kv": lambda **o: CompressedKV(max_depth=3, **VIEW, **o),
    "compressed_kv/cape": lambda: CompressedKV(max_depth=3, branching="cape", **VIEW),
    "layer_skip": lambda **o: LayerSkip(layers=[0], max_depth=3, min_confidence=0.0, **o),
    "layer_skip/searching": lambda: LayerSkip(
        max_depth=3, trial_tokens=4, trial_every=2, min_confidence=0.0
    ),
    "eagle": lambda **o: Eagle(fitted(model(), 3), max_depth=3, min_confidence=0.0, **o),
    "eagle/version 1": lambda **o: Eagle(fitted(model(), 1), max_depth=3, min_confidence=0.0, **o),
    "mtp": lambda **o: mtp(model(), max_depth=3, min_confidence=0.0, **o),
    "glide": lambda **o: Glide(drawn(target_of("llama")), max_depth=3, min_confidence=0.0, **o),
    "cascade": lambda **o: Cascade(
        eager_lookup(), CompressedKV(**VIEW, **o), max_depth=2, lower_nodes=2
    ),
    "medusa": lambda **o: Medusa(unfitted(model(), spread=0.02), min_confidence=0.0, **o),
    "dflash": lambda **o: DFlash(dflash("llama", "float64"), min_confidence=0.0, **o),
    "lookahead": lambda: Lookahead(window=4, ngram=3, guess_set=4),
    "token_recycling": lambda: TokenRecycling(top_k=3, max_depth=3, min_confidence=0.0),
}
# Those that copy, search by what the target chose, or branch as they believe.
NEVER_DRAW = (
    "prompt_lookup",
    "retrieval",
    "lookahead",
    "token_recycling",
    "layer_skip/searching",
    "compressed_kv/cape",
)
DRAWING = [name for name in SMALL if name not in NEVER_DRAW]


def small(name: str, **options: Any) -> Drafter:
    """Bound to the llama."""
    made = SMALL[name](**options)
    return made.for_target(target_of("llama"), None) if isinstance(made, DrafterForTarget) else made
