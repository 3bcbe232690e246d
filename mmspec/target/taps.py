"""Taps: the hidden states of some layers, taken from a forward that runs anyway."""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor
from transformers.utils import output_capturing

from mmspec.errors import ConfigError

Hidden: TypeAlias = Mapping[int, Tensor]  # by layer


class LateHidden(Hidden):
    """Hidden states of which some are made when they are first looked at: what nobody reads in a
    step costs it nothing."""

    def __init__(self, states: Mapping[int, Tensor | Callable[[], Tensor]]) -> None:
        self._states = dict(states)

    def __getitem__(self, tap: int) -> Tensor:
        states = self._states[tap]
        if not isinstance(states, Tensor):
            states = self._states[tap] = states()
        return states

    def __iter__(self) -> Iterator[int]:
        return iter(self._states)

    def __len__(self) -> int:
        return len(self._states)

    def of(self, index: int, count: int) -> "LateHidden":
        """Of the first `count` tokens of one text of the batch: layer -> (count, hidden)."""
        return LateHidden({tap: partial(self._of, tap, index, count) for tap in self._states})

    def _of(self, tap: int, index: int, count: int) -> Tensor:
        return self[tap][index, :count]


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
    """Layer -> (batch, seq, hidden) of a forward's output. A skipped layer hands on what it got. An
    output that has them by layer was told which ones, and passed over none."""
    known = output.hidden_states
    if isinstance(known, Mapping):
        return known
    return {tap: known[_place(tap, skipped)] for tap in taps}


def _place(tap: int, skipped: Collection[int]) -> int:
    return tap - sum(layer < tap for layer in skipped)


def late(hidden: Hidden) -> LateHidden:
    """The same; what is made when it is looked at still is."""
    return hidden if isinstance(hidden, LateHidden) else LateHidden(hidden)
