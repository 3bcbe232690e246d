"""The target model: native prefill into our cache, and a whole token tree scored in one forward."""

from mmspec.target.target import Target

__all__ = ["Target"]
