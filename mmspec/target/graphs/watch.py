"""Watch: whether a model still computes as it did when its calls were recorded."""

from typing import Any

from torch import Tensor, nn

from mmspec.target.untouched import is_plain

_ADAPTER_STATE = ("_active_adapter", "_disable_adapters", "merged_adapters")  # of peft's layers


class Watch:
    """Looks at what a replay passes by: modules, their hooks and weights. Some hundred microseconds
    for a large model, where asking the model for its modules takes milliseconds."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        # False: somebody has a hand in the model, whom a replay would pass by, or trains it.
        self.may_record = all(not m.training and is_plain(m) for m in modules)
        self._modules = [(vars(m), m.training, vars(m).get("forward")) for m in modules]
        self._own = [vars(m) for m in modules]
        self._hooks = {
            name: [tuple(own[name]) for own in self._own]
            for name in ("_forward_pre_hooks", "_forward_hooks")
        }
        self._places = [
            (outer._modules, name, inner)
            for outer in modules
            for name, inner in outer._modules.items()
        ]
        weights = [(m._parameters, *item) for m in modules for item in m._parameters.items()]
        self._weights = [(own, name, weight) for own, name, weight in weights]
        there = [weight for _, _, weight in weights if weight is not None]
        self._addresses = [(w, w.data_ptr()) for w in there if _has_address(w)]
        self._versions = [(w, w._version) for w in there if not w.is_inference()]
        self._adapters = [
            (vars(m), name, str(vars(m)[name]))
            for m in modules
            for name in _ADAPTER_STATE
            if name in vars(m)
        ]

    @property
    def holds(self) -> bool:
        """Whether all is as it was, but for writes past autograd's version counter (`.data`)."""
        return (
            all(
                own["training"] is training and own.get("forward") is forward
                for own, training, forward in self._modules
            )
            and all(
                tuple(own[name]) == known
                for name, all_known in self._hooks.items()
                for own, known in zip(self._own, all_known, strict=True)
                if own[name] or known
            )
            and all(siblings.get(name) is module for siblings, name, module in self._places)
            and all(own.get(name) is weight for own, name, weight in self._weights)
            and all(weight.data_ptr() == address for weight, address in self._addresses)
            and all(weight._version == version for weight, version in self._versions)
            and all(str(own.get(name)) == state for own, name, state in self._adapters)
        )


def _has_address(weight: Tensor) -> Any:
    """Not so for wrappers of several tensors, as quantised weights are."""
    return type(weight) is nn.Parameter and weight.device.type != "meta"
