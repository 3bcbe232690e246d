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
"""

from typing import TYPE_CHECKING

from mmspec.build import load
from mmspec.chat import Chat
from mmspec.config import Config, load_config
from mmspec.engine import Engine, Stream
from mmspec.errors import MmspecError
from mmspec.inputs import Passage
from mmspec.requests import Request, Result
from mmspec.stats import Stats
from mmspec.stream import Piece

if TYPE_CHECKING:
    from mmspec.integrations.transformers import custom_generate

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


def __getattr__(name: str) -> object:
    if name == "custom_generate":  # stands above the engine: imported when it is asked for
        from mmspec.integrations.transformers import custom_generate

        return custom_generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
