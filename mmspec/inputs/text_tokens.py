"""TextTokens: plain text -> the tokens of a target, for what is indexed and never templated."""

import hashlib
import json

from transformers import PreTrainedTokenizerBase

from mmspec.inputs.control_strings import control_strings
from mmspec.inputs.control_tokens import ControlTokens

SEPARATOR = -1


class TextTokens:
    """A tokenizer, and what a datastore has to know of it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._control = ControlTokens(tokenizer, control_strings(tokenizer)).ids

    @property
    def vocab_size(self) -> int:
        """One more than the highest token; a model may pad its vocabulary further."""
        return max(self._tokenizer.get_vocab().values(), default=0) + 1

    def encode(self, text: str) -> list[int]:
        """The text's tokens, no special ones added. Control and media tokens that the text spells
        out become separators (-1), which are never matched or drafted."""
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return [SEPARATOR if token in self._control else token for token in ids]

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False)

    def hash(self) -> str:
        """The same for tokenizers that make the same tokens of a text; padding, truncation and
        chat templates don't count."""
        if self._tokenizer.is_fast:
            text = self._tokenizer.backend_tokenizer.to_str()
            # Truncation and padding come before this key, and any call may set them.
            text = text[text.index('"added_tokens":') :]
        else:
            parts = {
                "class": type(self._tokenizer).__name__,
                "vocab": self._tokenizer.get_vocab(),
                "special": self._tokenizer.all_special_tokens,
            }
            text = json.dumps(parts, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
