"""eagle: a head of one or a few layers that reads the target's own hidden states drafts a tree.

0. `settings`    what the user sets; `drafter` the same, bound to a target
1. `config`      which EAGLE a folder holds; `checkpoint` reads and writes it
2. `module`      the head, for training and drafting alike
3. `bound_head`  the head with what it borrows of the target, as trees are scored by it
4. `scoring`     its forwards over a tree's new nodes; `graphs`, those recorded on a GPU
5. `session`     one request: the features it has not read yet, its row of the heads' cache
"""

from mmspec.drafters.eagle.config import EagleHeadConfig
from mmspec.drafters.eagle.module import EagleHead
from mmspec.drafters.eagle.settings import Eagle

__all__ = ["Eagle", "EagleHead", "EagleHeadConfig"]
