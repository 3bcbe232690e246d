"""glide: a small trained decoder that sees the target's own KV (GliDe, arXiv 2402.02082).

1. `config`, `rope`   the head's shape; how its queries are rotated to meet the target's keys
2. `module`           the head: self-attention, cross-attention over the target's KV, MLP
3. `glimpse`          what of that KV a token sees: in training, and in the target's cache
4. `checkpoint`       folders with heads
5. `settings`         what the user sets; `drafter` the same at work for its target
6. `scoring`          the head's forwards over a tree's new nodes
7. `session`          one request: its row of the head's own cache
"""

from mmspec.drafters.glide.checkpoint import load, save
from mmspec.drafters.glide.config import GlideHeadConfig
from mmspec.drafters.glide.drafter import BoundGlide
from mmspec.drafters.glide.module import GlideHead
from mmspec.drafters.glide.rope import CrossRope
from mmspec.drafters.glide.settings import Glide

__all__ = ["BoundGlide", "CrossRope", "Glide", "GlideHead", "GlideHeadConfig", "load", "save"]
