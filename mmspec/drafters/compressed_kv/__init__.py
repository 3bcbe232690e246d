"""compressed_kv: the target drafts for itself, over a small view of its own KV cache.

`CompressedKV` holds the settings; `BoundCompressedKV` is one at work for its target; a session is
one request's view and calibration. What a view shows is chosen by a policy (`mmspec.kv.policies`).
"""

from mmspec.drafters.compressed_kv.drafter import BoundCompressedKV
from mmspec.drafters.compressed_kv.settings import CompressedKV, policy_named

__all__ = ["BoundCompressedKV", "CompressedKV", "policy_named"]
