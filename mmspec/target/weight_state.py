"""WeightState: what a model computes with now."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import ref

from torch import Tensor, nn

# Of peft's layers; attentions have a scaling of their own, which stays as it is.
_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
_OWN = ("mmspec.", "transformers.utils.output_capturing")  # hooks that hand out, and change nothing


@dataclass(frozen=True, eq=False)
class WeightState:
    """Differs once a weight is written to or replaced, another adapter is switched on, a hook comes
    or goes, or a module is put into training, where it may drop a part of what it says. Writes past
    autograd's version counter (`.data`) are not seen."""

    state: int
    weights: tuple["ref[Tensor]", ...]

    @staticmethod
    def of(model: nn.Module) -> "WeightState":
        state: list[Hashable] = []
        weights: list[Tensor] = []
        for module in model.modules():
            own = vars(module)
            state.append(module.training)
            state += [str(own[name]) for name in _ADAPTER_STATE if name in own]
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                state += _numbers(hooks) if hooks else ()
            weights += module.parameters(recurse=False)
        for weight in weights:
            version = 0 if weight.is_inference() else weight._version
            state.append((id(weight), version, weight.dtype, weight.device))
        return WeightState(hash(tuple(state)), tuple(map(ref, weights)))

    def __eq__(self, other: object) -> bool:
        """A weight that is gone equals none: another one may have its id."""
        if not isinstance(other, WeightState) or self.state != other.state:
            return False
        return all(weight() is not None for weight in (*self.weights, *other.weights))

    def __hash__(self) -> int:
        return self.state


def _numbers(hooks: Mapping[int, Any]) -> list[int]:
    """torch gives each hook a number of its own. Another thread's forward may hang in some."""
    return [n for n, hook in list(hooks.items()) if not _module_of(hook).startswith(_OWN)]


def _module_of(hook: object) -> str:
    return str(getattr(hook, "__module__", ""))
