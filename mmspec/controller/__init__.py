"""Controllers: whom to ask for a draft, and how many of its nodes to score, at each step.

1. `interface`  what the decode loop asks of a controller and of one step's decisions
2. `fixed`      always asks, scores all: no choices
3. `auto`       most expected tokens a second, by what was measured; `auto_row` one row's part:
4. `costs`      what steps and proposals take
5. `outlook`    what a tree promises, by what became of nodes like its own
6. `worth`      what asking saves
7. `account`    what a drafter may still cost a request
8. `preparing`  whether what it has to do before its first draft can pay; `outlay` what that has
                cost all requests, and saved them
9. `asked`      a drafter's turn at a row's tree, and who proposed which nodes of it
10. `pace`      one request's part of all this

None of this can change a text: coupled verification never looks at the tree. Under a rule that
divides by q whether to ask is all there is to choose: from what became of earlier steps, before
anything is drawn.
"""

from collections.abc import Callable

from mmspec.controller.auto import AutoController, AutoStep
from mmspec.controller.fixed import FixedController, FixedStep
from mmspec.controller.interface import Controller, Step
from mmspec.controller.pace import Pace, Speculate

CONTROLLERS: dict[str, Callable[[], Controller]] = {
    "auto": AutoController,
    "fixed": FixedController,
}

__all__ = [
    "CONTROLLERS",
    "AutoController",
    "AutoStep",
    "Controller",
    "FixedController",
    "FixedStep",
    "Pace",
    "Speculate",
    "Step",
]
