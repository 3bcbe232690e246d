"""What travels between the stages of the decode loop. All of it is frozen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

    from mmspec.kv import KVCache


@dataclass(frozen=True)
class MediaSpan:
    """The placeholder tokens of one image or video in the prompt."""

    kind: Literal["image", "video"]
    start: int  # index of the first placeholder token
    stop: int  # one past the last


@dataclass(frozen=True)
class Prompt:
    """One request, processed: token ids and what the modality encoders need beside them."""

    token_ids: Tensor  # (seq,) int64, on the CPU
    model_inputs: Mapping[str, Tensor] = field(default_factory=dict)  # pixel_values, ...; batch 1
    media: tuple[MediaSpan, ...] = ()  # in order of start
    text: str | None = None  # what was tokenised, where there was a text
    images: "tuple[Image, ...]" = ()  # as the processor got them; a drafter may look for itself
    videos: "tuple[tuple[Image, ...], ...]" = ()  # the frames of each

    @property
    def num_tokens(self) -> int:
        return self.token_ids.shape[0]


@dataclass(frozen=True)
class Placement:
    """Where a row of the batch lives: its row of the KV cache and how its positions count."""

    row: int  # the KV cache's number of the row
    position_offsets: tuple[int, ...]  # (planes,): position of a token = its index in the row +
    # offset; one plane, or the three of M-RoPE


@dataclass(frozen=True)
class Prefill:
    """What the target says of a whole prompt: the logits that choose the first token."""

    logits: Tensor  # (vocab,) of the prompt's last token
    placement: Placement
    hidden: Mapping[int, Tensor] = field(default_factory=dict)  # layer -> (seq, hidden)
    cache: "KVCache | None" = None  # that holds the row; for who drafts from the target's own keys


@dataclass(frozen=True)
class Scores:
    """What the target says of one row's tree, a node at a time."""

    logits: Tensor  # (nodes, vocab): of the token that follows each node
    hidden: Mapping[int, Tensor] = field(default_factory=dict)  # layer -> (nodes, hidden)


@dataclass(frozen=True)
class Verdict:
    """What the verifier took of a tree. `tokens[i]` is the target's choice after node `path[i]`.

    All tokens but the last are the accepted nodes of the path below node 0; the last is the
    target's own choice at its end (or the token that ended the text) and is node 0 of the next
    step.
    """

    path: tuple[int, ...]  # node 0 first; the nodes whose KV is kept
    tokens: tuple[int, ...]  # as many as the path has nodes

    @property
    def num_accepted(self) -> int:
        """Drafted tokens that were accepted."""
        return len(self.path) - 1
