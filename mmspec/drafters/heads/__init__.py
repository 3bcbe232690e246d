"""What trained heads share: a decoder layer, its forward over ragged cached rows, and the target's
two ends.

1. `config`     the shape of a layer, as published config.json files give it
2. `rotary`     positions -> rotations
3. `attention`  whole sequences (training), or a tree's new nodes over a KV cache (drafting)
4. `block`      the layer itself
5. `nodes`      trees -> the ids, positions and attention of their new nodes
6. `places`     where the tokens of a text stand
7. `ends`       the target's embedding and head; `vocabulary`, a head's own part of the target's
8. `borrowing`  a head at work for a target, whose ends it may borrow
9. `graphs`     levels recorded on a GPU
"""

from mmspec.drafters.heads.attention import (
    Attend,
    CachedAttend,
    OverCache,
    Reading,
    SelfAttention,
    WholeSequences,
    attended,
)
from mmspec.drafters.heads.block import DecoderBlock, GatedMLP
from mmspec.drafters.heads.borrowing import BorrowingHead, as_one, placed
from mmspec.drafters.heads.config import BlockConfig
from mmspec.drafters.heads.ends import TargetEnds
from mmspec.drafters.heads.graphs import HeadGraphs, recorded_as
from mmspec.drafters.heads.nodes import NewNodes, writing_nodes
from mmspec.drafters.heads.norm import RMSNorm
from mmspec.drafters.heads.places import TextPlaces
from mmspec.drafters.heads.rotary import Rotary, Rotation

__all__ = [
    "Attend",
    "BlockConfig",
    "BorrowingHead",
    "CachedAttend",
    "DecoderBlock",
    "GatedMLP",
    "HeadGraphs",
    "NewNodes",
    "OverCache",
    "RMSNorm",
    "Reading",
    "Rotary",
    "Rotation",
    "SelfAttention",
    "TargetEnds",
    "TextPlaces",
    "WholeSequences",
    "as_one",
    "attended",
    "placed",
    "recorded_as",
    "writing_nodes",
]
