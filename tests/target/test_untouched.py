"""Modules that somebody has a hand in are found out, however the hand came in."""

from collections import OrderedDict

from torch import nn

from mmspec.target.untouched import Untouched, places_in


def test_hooks_in_dictionaries_that_were_replaced_are_seen() -> None:
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        untouched = Untouched(places_in(model))
        setattr(model[0], name, OrderedDict())
        assert untouched.holds, "no hook is in them yet"
        getattr(model[0], name)[0] = lambda *_: None
        assert not untouched.holds
