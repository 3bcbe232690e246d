"""cascade: a cheap drafter below the target's compressed cache, below the target (TriForce's
hierarchy, arXiv 2404.11912 section 4).

    prompt lookup  ->  tree  ->  the target over a view  ->  chain  ->  the target
                                 verifies, several times a step          verifies, once a step
"""

from mmspec.drafters.cascade.drafter import BoundCascade
from mmspec.drafters.cascade.settings import Cascade

__all__ = ["BoundCascade", "Cascade"]
