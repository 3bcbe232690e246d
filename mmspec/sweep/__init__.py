"""Sweep: which of transformers' architectures are decoded here, and how, tried one by one on tiny
random models. docs/models.md is what it found."""

from mmspec.sweep.names import Architecture, architectures
from mmspec.sweep.run import SweepLimits, sweep
from mmspec.sweep.table import markdown, rich_table
from mmspec.sweep.trial import Trial, try_architecture

__all__ = [
    "Architecture",
    "SweepLimits",
    "Trial",
    "architectures",
    "markdown",
    "rich_table",
    "sweep",
    "try_architecture",
]
