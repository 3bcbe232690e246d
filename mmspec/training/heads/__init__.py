"""Heads that draft for a target, trained on a user's own data: text, chats, documents, images.

1. `lessons`    files -> prompts with or without answers, texts
2. `answers`    the target's own answers, in a ledger
3. `examples`   tokens, and which of them are learned; `epochs`: which are read together, and when
4. `features`   what the target says of them, by its own forward, on the fly
5. `method`     what a kind of head minimises and drafts: medusa, eagle, eagle3, glide
6. `loop`       steps, checkpoints, and with `acceptance` what the head is worth meanwhile
7. `train_head` all of it
"""

from mmspec.training.heads.acceptance import Acceptance
from mmspec.training.heads.loop import Report
from mmspec.training.heads.train_head import Trained, Unwatched, Watcher, train_head

__all__ = ["Acceptance", "Report", "Trained", "Unwatched", "Watcher", "train_head"]
