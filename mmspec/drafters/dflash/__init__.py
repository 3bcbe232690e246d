"""dflash: a small network reads the target's states and drafts a whole block in one forward (block
diffusion, arXiv 2602.06036).

1. `config`      what a published folder says of it; `checkpoint` reads its weights
2. `module`      the network: features -> keys of the context; a block of masks -> its tokens
3. `bound_head`  the same with what it borrows of its target
4. `settings`    a folder, and how trees grow
5. `drafter`     at work for a target: all rows at once; features wait in EAGLE's session
6. `attention`   what a block sees of itself; `graphs`, its forwards recorded on a GPU
"""

from mmspec.drafters.dflash.checkpoint import load
from mmspec.drafters.dflash.config import DFlashConfig
from mmspec.drafters.dflash.module import DFlashHead
from mmspec.drafters.dflash.settings import DFlash

__all__ = ["DFlash", "DFlashConfig", "DFlashHead", "load"]
