"""What was found out about models that were decoded before, for as long as they live."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from weakref import WeakKeyDictionary, ref

from torch import nn
from transformers import PreTrainedModel

from mmspec.build import build_engine
from mmspec.build_drafters import chosen_drafters
from mmspec.build_target import probed_target
from mmspec.config import Config, DecodeConfig
from mmspec.controller import CONTROLLERS, Controller
from mmspec.drafters.base import Drafter
from mmspec.engine import Engine
from mmspec.target import Target
from mmspec.target.attached import Attention
from mmspec.target.blocks import Blocks
from mmspec.target.cuts import Cuts
from mmspec.target.found import Found
from mmspec.target.linears import Linears
from mmspec.target.masks import MaskRule
from mmspec.target.own_modes import own_modes
from mmspec.target.probe import Shape

_Modules: TypeAlias = tuple[ref[nn.Module], ...]


@dataclass(frozen=True)
class Probed:
    """What was found about a model, and the quick layers that it was seen with. These hold layers,
    never the model that they are in."""

    modules: _Modules  # the model's own, as they then were
    mask_rule: MaskRule
    attention: Attention
    linears: Linears | None
    blocks: Blocks | None
    cuts: Cuts
    found: Found
    shape: Shape

    @staticmethod
    def of(target: Target, shape: Shape) -> "Probed":
        attached = target.attachments
        return Probed(
            _modules(target.model),
            target.mask_rule,
            attached.attention,
            attached.linears,
            attached.blocks,
            target.cuts,
            target.found,
            shape,
        )

    def target(self, model: PreTrainedModel) -> Target:
        made = Target(
            model,
            mask_rule=self.mask_rule,
            attention=self.attention,
            linears=self.linears,
            blocks=self.blocks,
            found=self.found,
        )
        made.cuts = self.cuts
        return made


@dataclass
class Known:
    """One model: what was found, by what the model and the settings then were, and controllers that
    have learned its costs. Nothing here keeps the model alive."""

    probed: dict[tuple[object, ...], Probed] = field(default_factory=dict)
    controllers: dict[str, Controller] = field(default_factory=dict)


class KnownModels:
    """A model's second engine is there at once."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[PreTrainedModel, Known] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def engine(
        self,
        model: PreTrainedModel,
        config: Config,
        drafter: str | Drafter | Sequence[Drafter] | None,
    ) -> Engine:
        """An Engine for processed prompts. Raises ModelError and ConfigError."""
        drafters = chosen_drafters(drafter, config.drafter)
        with own_modes(model.device):
            with self._lock:
                known = self._known.setdefault(model, Known())
                probed = self._probed(model, known, config.decode)
                name = config.decode.controller
                if name in CONTROLLERS and name not in known.controllers:
                    known.controllers[name] = CONTROLLERS[name]()
            controller = known.controllers.get(name)
            return build_engine(config, model, None, drafters, probed=probed, controller=controller)

    def _probed(
        self, model: PreTrainedModel, known: Known, config: DecodeConfig
    ) -> tuple[Target, Shape]:
        text = model.config.get_text_config(decoder=True)
        attention = getattr(text, "_attn_implementation", None)
        key = (attention, model.dtype, config.attention, config.packed_weights)
        seen = known.probed.get(key)
        if seen is None or seen.modules != _modules(model):  # an adapter came, a layer went
            seen = known.probed[key] = Probed.of(*probed_target(model, config))
        return seen.target(model), seen.shape


def _modules(model: PreTrainedModel) -> _Modules:
    """One that is gone equals none, also where a new one has its id."""
    return tuple(map(ref, model.modules()))
