"""Training code: draft heads for any target, the small model that is bundled with mmspec, and the
enlargement of a trained model to the size of a large one."""

from mmspec.training.enlargement import enlarge
from mmspec.training.heads import train_head

__all__ = ["enlarge", "train_head"]
