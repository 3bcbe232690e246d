"""The KV cache: ragged rows in one flat buffer a layer. Imports nothing from the rest of mmspec."""

from mmspec.kv.cache import KVCache
from mmspec.kv.layer import FlatLayer, WritePlan

__all__ = ["FlatLayer", "KVCache", "WritePlan"]
