"""Tree attention: a few nodes over a long committed prefix, read where it lies in the KV cache.

`tree_attention` is the one function; its ladder of rungs picks the fastest that can do a call, on a
CPU or a GPU. `conformance` holds every rung against one suite of cases.
`interface` puts it into a transformers model's text tower for the time of one score call.
"""

from mmspec.attention.bitwise import CallPaths
from mmspec.attention.call import RowNodes, TreeCall
from mmspec.attention.chunk import ChunkCall
from mmspec.attention.reach import Reach
from mmspec.attention.rung import LayerRule
from mmspec.attention.tree import tree_attention

__all__ = [
    "CallPaths",
    "ChunkCall",
    "LayerRule",
    "Reach",
    "RowNodes",
    "TreeCall",
    "tree_attention",
]
