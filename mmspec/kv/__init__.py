"""The KV cache: ragged rows in one flat buffer a layer; small views of it, chosen by policies; and
the store of texts decoded before.
Imports nothing from the rest of mmspec."""

from mmspec.kv.buffers import BufferPool
from mmspec.kv.cache import KVCache
from mmspec.kv.layer import FlatLayer, WritePlan
from mmspec.kv.levels import Levels, LevelSlots
from mmspec.kv.prefix import Lease, PrefixStore, StoreInfo
from mmspec.kv.queries import QueryLog, QueryTap
from mmspec.kv.slots import WriteSlots
from mmspec.kv.state_layer import StateKey, StateKind, StateLayer
from mmspec.kv.state_slots import Held, StateBlock
from mmspec.kv.states import RunningStates
from mmspec.kv.view import KVView, ViewSize

__all__ = [
    "BufferPool",
    "FlatLayer",
    "Held",
    "KVCache",
    "KVView",
    "Lease",
    "LevelSlots",
    "Levels",
    "PrefixStore",
    "QueryLog",
    "QueryTap",
    "RunningStates",
    "StateBlock",
    "StateKey",
    "StateKind",
    "StateLayer",
    "StoreInfo",
    "ViewSize",
    "WritePlan",
    "WriteSlots",
]
