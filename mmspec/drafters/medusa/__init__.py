"""medusa: heads on the target's last hidden state, each for a token further on (Cai et al., arXiv
2401.10774).

1. `config`      the shape of a set of heads
2. `module`      the heads, to be trained or drafted with
3. `checkpoint`  read as others publish them, written as the authors do
4. `settings`    a folder or heads, and how their trees grow
5. `drafter`     the same at work for its target: all heads and rows at once
6. `session`     one request: the state that chose the newest token
7. `graphs`      their forward, recorded on a GPU
8. `trees`       what all heads say -> trees: the likeliest (`best_paths`), or drawn (`drawn_paths`)
"""

from mmspec.drafters.medusa.checkpoint import load, save
from mmspec.drafters.medusa.config import MedusaHeadConfig
from mmspec.drafters.medusa.drafter import BoundMedusa
from mmspec.drafters.medusa.module import MedusaHead
from mmspec.drafters.medusa.settings import Medusa

__all__ = ["BoundMedusa", "Medusa", "MedusaHead", "MedusaHeadConfig", "load", "save"]
