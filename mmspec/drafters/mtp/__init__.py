"""mtp: the layer that a model was trained with to say the token after the next one drafts a tree.

Many checkpoints bring it, transformers leaves it out at load (DeepSeek-V3, arXiv 2412.19437 section
2.2; GLM-4.5, Qwen3-Next, Qwen3.5). It reads what EAGLE-1's heads read, and drafts by their session.

1. `checkpoint` finds the layer's weights among the model's own
2. `layer`      the layer itself, a decoder layer of the model's own family
3. `head`       the layer with what it borrows of its model, as trees are scored by it
4. `settings`   what the user sets
"""

from mmspec.drafters.mtp.settings import Mtp

__all__ = ["Mtp"]
