"""Whole scenarios, drawn at random: requests of all kinds, in all orders, over any engine.

    steering   processors, criteria and options of a request
    cases      what one request asks, built anew each time that it is asked
    drafting   drafters with settings of their own, faulty ones among them
    scenario   a model, an engine and rounds of cases, all of it from one seed
    play       how a round reaches the engine: a batch, arrivals, a stream, threads, transformers
    judge      what plain decoding alone says of each case, and what differs from it

Scenarios of other kinds, `KINDS`, on tiny models with real processors (`speakers`):

    talks      chats, and batches of texts, with pictures, frames and recordings
    clients    of the server, side by side; some of them leave
    forms      JSON of random schemas
    frameworks LangChain, LlamaIndex and Haystack, by threads and tasks at once
    tenants    namespaces that must not find what others left
    rough      bfloat16 and float16, bitwise and not
    killed     `mmspec batch`, at any moment

`run(seed, kind=...)` gives what is wrong with a scenario: nothing, it is to be hoped.
"""

from .report import Report
from .scenario import KINDS, run

__all__ = ["KINDS", "Report", "run"]
