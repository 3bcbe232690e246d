"""The KV cache: ragged rows in one flat buffer a layer. Imports nothing from the rest of mmspec."""

from mmspec.kv.cache import KVCache

__all__ = ["KVCache"]
