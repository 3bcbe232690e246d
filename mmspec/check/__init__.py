"""Is speculative text the plain text, on a user's own model and prompts?

1. `prompts`     prompts of its own, with pictures where the model takes them
2. `stress`      a drafter that knows the plain text and hides it among wrong tokens
3. `run`         every way of decoding, beside plain decoding       -> Comparison
4. `difference`  the first difference: margin, logit error, verdict -> Difference
5. `rounding`    how far rounding alone moves this model's logits
"""

from mmspec.check.difference import Difference, Verdict
from mmspec.check.run import CheckReport, Comparison, run_check

__all__ = ["CheckReport", "Comparison", "Difference", "Verdict", "run_check"]
