"""layer_skip: the target drafts for itself with some of its layers left out.

1. `settings`  which share of the layers, how the trees grow
2. `drafter`   the same at work for its target: its forwards and its search
3. `session`   one request: what was proposed, the text as far as it is told
4. `search`    which layers: tried out while generating (SWIFT, arXiv 2410.06916)
"""

from mmspec.drafters.layer_skip.drafter import BoundLayerSkip
from mmspec.drafters.layer_skip.settings import LayerSkip

__all__ = ["BoundLayerSkip", "LayerSkip"]
