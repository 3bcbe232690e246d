"""Whole scenarios, drawn at random: requests of all kinds, in all orders, over any engine.

    steering   processors, criteria and options of a request
    cases      what one request asks, built anew each time that it is asked
    drafting   drafters with settings of their own, faulty ones among them
    scenario   a model, an engine and rounds of cases, all of it from one seed
    play       how a round reaches the engine: a batch, arrivals, a stream, threads, transformers
    judge      what plain decoding alone says of each case, and what differs from it

`run(seed)` gives what is wrong with a scenario: nothing, it is to be hoped.
"""

from .report import Report
from .scenario import KINDS, run

__all__ = ["KINDS", "Report", "run"]
