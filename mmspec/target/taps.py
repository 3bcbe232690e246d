"""Taps: the hidden states of some layers, taken from a forward that runs anyway."""

from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from torch import Tensor
from transformers.utils import output_capturing

from mmspec.errors import ConfigError

Hidden: TypeAlias = Mapping[int, Tensor]  # by layer

# Older versions of transformers take a list of layers too, but drop the one after the final norm.
_TAKES_LAYERS = hasattr(output_capturing, "selected_hidden_states")


def check_taps(taps: Collection[int], *, num_layers: int, who: str) -> None:
    """Raises ConfigError for a layer that the model does not have."""
    wrong = sorted(tap for tap in taps if not 0 <= tap <= num_layers)
    if wrong:
        raise ConfigError(
            f"{who} reads the target's hidden states {wrong}: expected 0 (the embedding) to "
            f"{num_layers} (after the final norm); was it made for another model?"
        )


def asked_for(taps: Collection[int], *, skipped: Collection[int] = ()) -> bool | list[int]:
    """The forward's `output_hidden_states`. `skipped`: layers that it passes over, and whose states
    it does not count."""
    if not taps:
        return False
    return sorted({_place(tap, skipped) for tap in taps}) if _TAKES_LAYERS else True


def taken(output: Any, taps: Collection[int], *, skipped: Collection[int] = ()) -> Hidden:
    """Layer -> (batch, seq, hidden) of a forward's output. A skipped layer hands on what it got."""
    return {tap: output.hidden_states[_place(tap, skipped)] for tap in taps}


def _place(tap: int, skipped: Collection[int]) -> int:
    return tap - sum(layer < tap for layer in skipped)
