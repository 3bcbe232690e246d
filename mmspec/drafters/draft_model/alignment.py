"""Two tokenizers, aligned by text: tokens are re-encoded only at the seam where text is added."""

from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mmspec.calibration import Calibration
from mmspec.drafters.draft_model.codec import ANCHORS, HALF, SEAM, Codec
from mmspec.drafters.draft_model.trie import PathTrie
from mmspec.drafters.growing.growth import Growth
from mmspec.drafters.proposal import Proposal
from mmspec.errors import ConfigError
from mmspec.state import Prompt
from mmspec.stream import build_detokenizer
from mmspec.tree import TokenTree

_PROBE = "Hello, world! It's 42:\n  x = [1, 2] Élan über"


class TextAlignment:
    """One target's tokenizer and one draft model's."""

    shares_ids = False

    def __init__(self, target: Codec, draft: Codec) -> None:
        self.target = target
        self.draft = draft
        self.eos = target.tokenizer.eos_token_id
        known = draft.tokenizer.get_vocab()
        # Special tokens that only the target knows are no text to the draft model.
        self.unread = {
            token
            for token in target.specials
            if target.tokenizer.convert_ids_to_tokens(token) not in known
        }

    def wording(self, prompt: Prompt) -> "TextWording":
        return TextWording(self, prompt)

    def crop(self, logits: Tensor) -> Tensor:
        return logits

    def read_prompt(self, pieces: Sequence[Sequence[int] | str]) -> list[int]:
        """The prompt's text as it is, in the draft model's ids, begun as its tokenizer begins a
        text. Its chat template stays the target's."""
        text, before = "", list[int]()
        for piece in pieces:
            if isinstance(piece, str):
                text += piece
            else:
                own = [token for token in piece if token not in self.unread]
                text += self.target.decode_behind(before, own)
                before = [*before, *own][-SEAM:]
        bos = self.draft.tokenizer.bos_token
        ids = self.draft.encode(text)
        if not (bos and text.startswith(bos)):
            begun = list(self.draft.tokenizer("").input_ids)  # what it writes by itself
            if begun and bos and begun[0] == self.draft.tokenizer.bos_token_id:
                ids = [begun[0], *ids]
        return ids or [self.draft.tokenizer.bos_token_id or 0]


class TextWording:
    """One request's text: certain characters alone, re-encoded at the seam."""

    def __init__(self, alignment: TextAlignment, prompt: Prompt) -> None:
        self.ids: list[int] = []
        self._alignment = alignment
        self._detokenizer = build_detokenizer(alignment.target.tokenizer, skip_special_tokens=False)
        # Some tokenizers drop a text's first space, which an answer behind a prompt is not.
        before = [token for token in prompt.token_ids.tolist() if token not in alignment.unread]
        self._decoded(before[-SEAM:])
        self._num_read = prompt.num_tokens
        self._is_half = False

    @property
    def can_continue(self) -> bool:
        return not self._is_half

    def read(self, tokens: Sequence[int]) -> int:
        text = self._decoded(tokens[self._num_read :])
        self._num_read = len(tokens)
        self._is_half = bool(self._detokenizer.flush())
        return self._append(text) if text else len(self.ids)

    def propose(self, growth: Growth, tokens: Sequence[int], calibration: Calibration) -> Proposal:
        """Each path's text in the target's ids; a path of several tokens may be one of the
        target's, and the reverse. The last word of a path can change with what would follow it, so
        its confidence is learnt apart."""
        grown, target = growth.proposal.tree, self._alignment.target
        trie, before = PathTrie(tokens[-1], grown.drafters[-1]), target.tail(tokens)
        context = target.encode(before or ANCHORS[0])
        for leaf in set(range(1, grown.num_nodes)) - set(grown.parents):
            self._add(trie, before, context, grown, grown.path_to(leaf)[1:])
        return trie.proposal(calibration)

    def _decoded(self, tokens: Sequence[int]) -> str:
        """Their text, as far as it is certain."""
        unread, push = self._alignment.unread, self._detokenizer.push
        return "".join(push(token) for token in tokens if token not in unread)

    def _append(self, text: str) -> int:
        draft = self._alignment.draft
        tail, before = draft.seam(self.ids)
        if not tail:
            unchanged = len(self.ids)
            self.ids += draft.encode_behind("", text)
            return unchanged
        fresh, same = draft.encode(before + text), 0
        while same < len(tail) and same < len(fresh) and fresh[same] == tail[same]:
            same += 1
        unchanged = len(self.ids) - len(tail) + same
        self.ids[unchanged:] = fresh[same:]
        return unchanged

    def _add(
        self,
        trie: PathTrie,
        before: str,
        context: Sequence[int],
        grown: TokenTree,
        path: Sequence[int],
    ) -> None:
        """One path of the draft model's tree, as far as its text is whole characters. `context`:
        the target's ids of the text `before` it."""
        draft, target = self._alignment.draft, self._alignment.target
        behind, likely = self.ids[-SEAM:], grown.cumulative_confidence
        ends: list[tuple[int, float]] = []  # (characters, how likely so far), of each node
        ids: list[int] = []
        text, eos = "", None
        for node in path:
            token = grown.tokens[node]
            if token in draft.specials:
                eos = likely[node] if token == draft.tokenizer.eos_token_id else None
                break
            ids.append(token)
            text = draft.decode_behind(behind, ids)
            whole = text.rstrip(HALF)
            ends.append((len(whole), likely[node]))
        text = text.rstrip(HALF)
        encoded = target.encode_behind(before, text) if text else []
        last_word = len(text.rstrip()) - len(text.split()[-1]) if text.split() else 0
        chances, num_certain = list[float](), 0
        for count in range(1, len(encoded) + 1):
            told = target.decode_behind(context, encoded[:count])
            length = len(told.rstrip(HALF))
            chances.append(next((c for end, c in ends if end >= length), ends[-1][1]))
            num_certain = count if length <= last_word else num_certain
        if eos is not None and self._alignment.eos is not None:
            encoded, chances = [*encoded, self._alignment.eos], [*chances, eos]
            num_certain = len(encoded)
        trie.add(encoded, chances, num_certain=num_certain)


def aligned(target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase) -> TextAlignment:
    """Raises ConfigError for tokenizers whose text is not what was encoded."""
    codecs = [Codec(target), Codec(draft)]
    for whose, codec in zip(("target", "draft model"), codecs, strict=True):
        back = codec.decode(codec.encode(_PROBE))
        if _plain(back) != _plain(_PROBE):
            raise ConfigError(
                f"drafter.draft_model: the {whose}'s tokenizer reads {_PROBE!r} back as {back!r}, "
                "so texts cannot be aligned between the two tokenizers; expected a draft model "
                "with the target's tokenizer, or two tokenizers that keep a text as it is"
            )
    return TextAlignment(*codecs)


def _plain(text: str) -> str:
    """What every tokenizer that can be aligned keeps: a character that it does not know, and a
    first space, matter little."""
    return text.strip()
