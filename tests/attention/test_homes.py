"""Homes: layers that share keys find them, and no key lives longer for it."""

import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from mmspec.attention.homes import Homes


def layers(*are_initialized: bool) -> Any:
    return cast(
        Any, [SimpleNamespace(is_initialized=value, keeps_tokens=True) for value in are_initialized]
    )


def test_a_layer_without_keys_finds_those_it_is_handed():
    homes = Homes(layers(True, True, False, False))
    first, second = torch.zeros(1), torch.zeros(1)

    assert [homes.of(0, first), homes.of(1, second)] == [0, 1]
    assert [homes.of(2, first), homes.of(3, second)] == [0, 1]


def test_a_layer_that_is_handed_nobodys_keys_is_refused():
    homes = Homes(layers(True, False))
    homes.of(0, torch.zeros(1))

    with pytest.raises(RuntimeError, match="layer 1 keeps no keys"):
        homes.of(1, torch.zeros(1))


def test_keys_that_the_model_lets_go_are_freed():
    """Before a cache's first forward no layer has buffers, so any might share: as many keys as a
    whole prompt has must not be held for it."""
    homes = Homes(layers(True, False))
    key = torch.zeros(1)
    homes.of(0, key)
    seen = weakref.ref(key)
    del key

    assert seen() is None
