"""Graphs: score calls and draft steps recorded once, and then repeated without Python.

On a GPU a target's forward is a thousand small launches, which take the CPU longer than the GPU
takes to compute them. A call is recorded for a `Bucket` of calls like it; all that it depends on
is in `StaticInputs`, tensors that stay where they are. `ScoreGraphs` knows which graphs there are,
when one is worth recording, and when it is not to be trusted; a `Recorder` makes them.
"""

from mmspec.target.graphs.bucket import Bucket
from mmspec.target.graphs.call import Computed, HeldQueries, ScoreCall
from mmspec.target.graphs.inputs import StaticInputs
from mmspec.target.graphs.recorder import CudaRecorder, Recorder, Recording
from mmspec.target.graphs.score import GraphInfo, ScoreGraphs

__all__ = [
    "Bucket",
    "Computed",
    "CudaRecorder",
    "GraphInfo",
    "HeldQueries",
    "Recorder",
    "Recording",
    "ScoreCall",
    "ScoreGraphs",
    "StaticInputs",
]
