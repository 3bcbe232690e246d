"""Request: what a user asks for, prompt and sampling in one; Result: what comes back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from mmspec.controller import Speculate
from mmspec.errors import InputError, MmspecError, nearest
from mmspec.inputs import AudioSource, ControlMode, ImageSource, Passages, VideoSource
from mmspec.inputs.template import ToolSpec
from mmspec.logprobs import TokenLogprobs
from mmspec.params import Rule, SamplingParams, switches
from mmspec.result_html import result_html
from mmspec.row import FinishReason
from mmspec.state import Prompt
from mmspec.stats import Stats
from mmspec.stream import Piece
from mmspec.words import counted

Messages = Sequence[Mapping[str, Any]]  # chat messages as Hugging Face or OpenAI write them
_REFUSED = {
    "max_length": "here it is max_new_tokens=, which does not count the prompt",
    "stop_strings": "here it is stop=",
    "streamer": "a text is streamed by engine.stream(prompt, ...)",
    "response_format": "here it is logits_processors=[JsonGuide(engine).matching(schema)], of "
    "mmspec.integrations.guided",
    "num_beams": "beam search is not supported; leave it out",
    "penalty_alpha": "contrastive search is not supported; leave it out",
    "num_return_sequences": "here it is n=",
    "guidance_scale": "classifier-free guidance is not supported; leave it out",
    "assistant_model": 'here it is mmspec.load(model, drafter="draft_model", ...)',
    "prompt_lookup_num_tokens": "prompts are looked up unless mmspec.load is told another drafter=",
}


@dataclass(frozen=True)
class Request(SamplingParams):
    """One prompt with its images and its own sampling parameters.

    `prompt` is a text (put through the chat template, unless `raw`), chat messages, a `Prompt`, or
    the mapping that a Hugging Face processor returned for a batch of one.

    - What is asked: `images`, `videos`, `audio`, `system`, `tools`, `documents`, `passages` (to
      quote from), `passage_template`, `template_arguments`, `raw` (no chat template),
      `control_tokens`.
    - How it is chosen: `temperature` (0 is greedy), `top_p`, `top_k`, `min_p`, `do_sample`, `seed`,
      penalties (`repetition_penalty`, `presence_penalty`, `frequency_penalty`), `logit_bias`,
      `bad_words`, `logits_processors`, `prefix_allowed_tokens_fn`, `generation_config`.
    - Where it ends: `max_new_tokens` (else the generation_config's, else 256), `min_new_tokens`,
      `stop`, `eos_token_id`, `ignore_eos`, `max_time` (seconds), `stopping_criteria`.
    - What comes back: `n` samples, `sample` (the first one's number), `logprobs`, `logprobs_of`,
      `prompt_logprobs`, `output_scores`, `output_logits`, `skip_special_tokens`.
    - How it is computed, the same text in each case: `speculate`, `prediction` (what the answer may
      well be), `reuse` and `namespace` (of what earlier requests left), `on_prefill`, `is_wanted`.
    """

    prompt: str | Messages | Prompt | Mapping[str, Tensor]
    _: KW_ONLY
    images: (
        ImageSource | Sequence[ImageSource]
    ) = ()  # one or several: path, bytes, PIL image, array, data: URL
    videos: (
        VideoSource | Sequence[VideoSource]
    ) = ()  # one or several: sequence of frames, animated GIF or WebP
    audio: (
        AudioSource | Sequence[AudioSource]
    ) = ()  # one or several: path, bytes, (array, samples a second)
    raw: bool = False  # no chat template; the text holds its own placeholders
    system: str | None = None
    tools: Sequence[ToolSpec] | None = None
    documents: Sequence[Mapping[str, object]] | None = None
    passages: Passages = ()  # texts, or mmspec.Passage, that the answer may quote: put into the
    # prompt and drafted from. A processed prompt stays as it is: they are drafted from alone
    passage_template: str | None = None  # Jinja, of `passages` and `question`; None: mmspec's own
    template_arguments: Mapping[str, object] | None = None
    control_tokens: ControlMode | None = None  # None: as configured
    speculate: Speculate = "auto"  # False: plain decoding; True: always draft; the same text,
    # unless the engine's verifier is one that keeps no more than its distribution
    prediction: str | None = None  # what the answer may well be: it is drafted from, and not read
    reuse: bool = True  # False: takes nothing from earlier requests and leaves nothing to later
    namespace: str = ""  # what one namespace's requests leave is never found from another
    on_prefill: Callable[[int, int], None] | None = None  # told of prompt tokens done, and of all
    is_wanted: Callable[[], bool] | None = None  # asked between steps: False ends it, as "closed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample + self.n > 2**32:
            raise InputError(f"sample={self.sample}, n={self.n}: expected a sum of at most 2^32")
        self.check(_RULES)


_RULES: tuple[Rule, ...] = (
    *switches("raw", "reuse"),
    ("speculate", lambda v: isinstance(v, bool) or v == "auto", "True, False or 'auto'"),
    ("namespace", lambda v: isinstance(v, str), "a text"),
    ("prediction", lambda v: isinstance(v, str), "the answer's likely text"),
    (
        "template_arguments",
        lambda v: isinstance(v, Mapping),
        "variables of the template: {name: value}",
    ),
    ("on_prefill", callable, "a function (tokens done, of all)"),
    ("is_wanted", callable, "a function without arguments"),
)
FIELD_NAMES = tuple(one.name for one in fields(Request))


def build_request(prompt: object, options: Mapping[str, Any]) -> Request:
    """A Request from a prompt and keyword options; a Request passes through, with the options
    laid over it. Raises InputError that names the nearest right option for an unknown one."""
    for name in options:
        if name in _REFUSED:
            raise InputError(f"got {name}=: {_REFUSED[name]}")
        if name not in FIELD_NAMES:
            raise InputError(f"unknown option {name!r}: {nearest(name, FIELD_NAMES)}")
    if isinstance(prompt, Request):
        return replace(prompt, **options)
    return Request(prompt=prompt, **options)  # type: ignore[arg-type]


def check_streamed(request: Request) -> None:
    """Raises InputError for one that has no single text."""
    if request.n > 1:
        raise InputError(f"stream got n={request.n}, expected 1: samples come from generate")


def while_wanted(request: Request, is_wanted: Callable[[], bool]) -> Request:
    """The request, which ends also when `is_wanted` says that it is not wanted any more."""
    own = request.is_wanted
    both = is_wanted if own is None else lambda: own() and is_wanted()
    return replace(request, is_wanted=both)


def is_batch(prompt: object) -> bool:
    """A list of requests, texts, chats or processed prompts, as against one list of chat messages.
    What else is among them is no prompt, which costs no other."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return False
    if any(isinstance(item, Mapping) and "input_ids" not in item for item in prompt):
        return False
    kinds = Request | str | Prompt | Mapping
    return not prompt or any(isinstance(item, kinds) or _is_chat(item) for item in prompt)


def _is_chat(item: object) -> bool:
    is_list = isinstance(item, list | tuple) and len(item) > 0
    return is_list and all(isinstance(message, Mapping) for message in item)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Result:
    """One request's answer; of n samples the first, with the others beside it."""

    text: str
    tokens: tuple[int, ...] = field(repr=False)  # the generated ones, the ending EOS included
    finish_reason: FinishReason
    seed: int | None  # the one used: it gives the same text again; None if nothing began
    stats: Stats = field(repr=False)
    pieces: tuple[Piece, ...] = field(default=(), repr=False)  # the text, by who drafted it
    error: MmspecError | None = None  # why the request ended early; its batch went on
    sample: int = 0  # its number: seed and sample give the same text again
    others: tuple["Result", ...] = ()  # the request's further samples
    logprobs: tuple[TokenLogprobs, ...] | None = field(default=None, repr=False)  # (tokens,);
    # None if not asked for
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = field(default=None, repr=False)
    # (prompt,); None inside: the first token and media placeholders
    scores: Tensor | None = field(default=None, compare=False, repr=False)  # (tokens, vocab)
    # float32, processed; None if not kept
    logits: Tensor | None = field(default=None, compare=False, repr=False)  # (tokens, vocab)
    # float32, the target's own; None if not kept

    @property
    def samples(self) -> tuple["Result", ...]:
        """All samples of the prompt, this one first."""
        return (self, *self.others)

    @property
    def summary(self) -> str:
        """The answer in figures, on one line."""
        stats = self.stats
        parts = [counted(stats.new_tokens, "token"), f"{stats.tokens_per_step:.2f} a step"]
        for name, count in stats.by_drafter.items():
            share = f"{count.accepted:,} of {counted(count.proposed, 'draft')} accepted"
            parts.append(f"{name}: {share} ({count.acceptance:.0%})")
        parts += [f"{stats.tokens_per_second:,.0f} tokens/s", f"seed {self.seed}"]
        return " · ".join([*parts, f"ended by {self.finish_reason}"])

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return result_html(self)


@dataclass(frozen=True)
class Progress:
    """What a step brought one sample of one request of several."""

    index: int  # the request's number
    sample: int = 0  # of its samples, counted from 0
    num_tokens: int = 0  # that the sample has so far
    pieces: tuple[Piece, ...] = ()  # text that has become certain
    logprobs: tuple[TokenLogprobs, ...] = ()  # of the new tokens, where they are asked for
    finish_reason: FinishReason | None = None  # of the sample, once it has ended
    result: Result | None = None  # the whole answer, once all samples have ended
