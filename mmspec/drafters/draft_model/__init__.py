"""draft_model: a smaller model of any kind drafts a tree for the target.

0. `model`       what the user sets; `drafter` the same, bound to a target
1. `prompts`     the target's prompt, as the draft model reads it: images given, thinned, told, left
2. `wording`     the chosen tokens in the draft model's own ids (same ids, or `alignment` by text)
3. `session`     one request: its row of the draft model's cache, what is committed, what is not

How its trees grow is `mmspec.drafters.growing`.
"""

from mmspec.drafters.draft_model.model import DraftModel

__all__ = ["DraftModel"]
