"""mmspec: speculative decoding for any Hugging Face vision-language or language model.

    engine = mmspec.load("path-or-hub-id")
    result = engine.generate("What is the total?", images="invoice.png", seed=7)

`help(mmspec.Request)` lists what a call may ask. The pipeline, in reading order:

1. `inputs`    messages, images, documents      -> Prompt
2. `target`    prefill: the prompt, natively     -> Prefill
3. `drafters`  propose: what may come next       -> TokenTree
4. `target`    score: the tree, in one forward   -> Scores
5. `sampling`  logits + noise(seed, position)    -> the target's own token
6. `verify`    the walk down the tree            -> Verdict
7. `kv`        commit: keep the accepted path
8. `stream`    tokens -> text, stops, EOS        -> Piece, Result

`import mmspec` itself takes no time: a name's module, and torch and transformers with it, is
imported when the name is first asked for (PEP 562).
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mmspec.errors import MmspecError

if TYPE_CHECKING:  # what type checkers and editors see; _HOMES is the same
    from mmspec.answers import Stream
    from mmspec.build import load
    from mmspec.chat import Chat
    from mmspec.config import Config, load_config
    from mmspec.engine import Engine
    from mmspec.inputs import Passage
    from mmspec.integrations.transformers import custom_generate
    from mmspec.requests import Request, Result
    from mmspec.stats import Stats
    from mmspec.stream import Piece

__version__ = "0.1.0"
__all__ = [
    "Chat",
    "Config",
    "Engine",
    "MmspecError",
    "Passage",
    "Piece",
    "Request",
    "Result",
    "Stats",
    "Stream",
    "custom_generate",
    "load",
    "load_config",
]
_HOMES = {
    "Chat": "mmspec.chat",
    "Config": "mmspec.config",
    "Engine": "mmspec.engine",
    "Passage": "mmspec.inputs",
    "Piece": "mmspec.stream",
    "Request": "mmspec.requests",
    "Result": "mmspec.requests",
    "Stats": "mmspec.stats",
    "Stream": "mmspec.answers",
    "custom_generate": "mmspec.integrations.transformers",
    "load": "mmspec.build",
    "load_config": "mmspec.config",
}

if not TYPE_CHECKING:  # with it, a checker would believe every name

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            globals()[name] = getattr(import_module(_HOMES[name]), name)
            return globals()[name]
        if find_spec(f"{__name__}.{name}"):  # mmspec.noise without an import of its own
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
