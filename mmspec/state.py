"""What travels between the stages of the decode loop. All of it is frozen."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from transformers.utils import ModelOutput

    from mmspec.kv import KVCache


MediaKind = Literal["image", "video", "audio"]


@dataclass(frozen=True)
class MediaSpan:
    """The placeholder tokens of one image, video or recording in the prompt."""

    kind: MediaKind
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
    audio: "tuple[np.ndarray, ...]" = ()  # (samples,) float32 of each, at the processor's rate
    draft_texts: tuple[tuple[int, ...], ...] = ()  # beside the prompt: the target never sees them,
    # but they may be copied from; -1 is never copied nor matched
    namespace: str | None = None  # whose earlier texts may be drafted from; None: nobody's
    encoded: "Mapping[MediaKind, ModelOutput]" = field(default_factory=dict)  # what encoders have
    # made of media already, as the model's forward takes it

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
class Taps:
    """Hidden states of the target that somebody reads. `layers` are indices into transformers'
    `hidden_states`: 0 the embedding, i the output of layer i, the last one after the final norm.
    """

    layers: frozenset[int] = frozenset()
    whole_prompt: bool = False  # False: of the prompt its last token's alone

    def __or__(self, other: "Taps") -> "Taps":
        return Taps(self.layers | other.layers, self.whole_prompt or other.whole_prompt)


@dataclass(frozen=True)
class Prefill:
    """What the target says of a whole prompt: the logits that choose the first token."""

    logits: Tensor  # (vocab,) of the prompt's last token
    placement: Placement
    hidden: Mapping[int, Tensor] = field(default_factory=dict)  # tapped layer -> (seq, hidden) of
    # the prompt's last `seq` tokens; what was reused from an earlier request has none
    cache: "KVCache | None" = None  # that holds the row; for who drafts from the target's own keys


@dataclass(frozen=True)
class Scores:
    """What the target says of one row's tree, a node at a time."""

    logits: Tensor  # (nodes, vocab): of the token that follows each node
    hidden: Mapping[int, Tensor] = field(default_factory=dict)  # tapped layer -> (nodes, hidden)
    choice: Callable[[tuple[int, ...]], int | None] | None = None  # the tokens of a path below
    # node 0 -> the target's own behind it; once verified, where it was found at all nodes


@dataclass(frozen=True)
class Prices:
    """What one request's time buys at present, as it was measured."""

    token_s: float  # seconds in which it gets a token
    node_s: float  # that one more node costs in the target's forward
    most_s: float = math.inf  # that a proposal may take: what may be lost if nothing comes of it


@dataclass(frozen=True)
class Preparation:
    """Work that a draft session has to do before its next proposal, told by what of the target's
    takes as long. What it takes indeed is measured."""

    steps: float = 0.0  # plain steps: for what is read and written in memory
    tokens: float = 0.0  # of a prompt, as the target reads them: for another model's reading
    seconds: float = 0.0  # for what depends on no model
    lasts_tokens: float = math.inf  # of text, after which there is as much to do again
    can_wait: bool = False  # a proposal can be made without it; what it brings is all requests'

    def __add__(self, other: "Preparation") -> "Preparation":
        return Preparation(
            self.steps + other.steps,
            self.tokens + other.tokens,
            self.seconds + other.seconds,
            min(self.lasts_tokens, other.lasts_tokens),
            self.can_wait and other.can_wait,
        )


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
