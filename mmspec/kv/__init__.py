"""The KV cache: ragged rows in one flat buffer a layer; and the store of texts decoded before.
Imports nothing from the rest of mmspec."""

from mmspec.kv.cache import KVCache
from mmspec.kv.layer import FlatLayer, WritePlan
from mmspec.kv.prefix import Lease, PrefixStore, StoreInfo

__all__ = ["FlatLayer", "KVCache", "Lease", "PrefixStore", "StoreInfo", "WritePlan"]
