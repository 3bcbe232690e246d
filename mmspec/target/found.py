"""Found: what a model was seen to do as it ran, for all of its targets."""

from dataclasses import dataclass, field

from torch import nn

from mmspec.encoders.company import Company
from mmspec.target.mixers import Mixers


@dataclass
class Found:
    """Filled in as it is asked for. Holds the model's modules, never the model."""

    mixers: Mixers | None = None  # of one with running states
    packing: frozenset[nn.Module] | None = None  # decoder layers that hand on a tuple
    against_watching: str | None = None  # why none can tell its queries; "": all can
    company: Company = field(default_factory=Company)  # whether encoders read each medium alone
