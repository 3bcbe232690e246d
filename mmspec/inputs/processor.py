"""What a user asks -> a Prompt, by the model's own processor and chat template."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from inspect import signature
from typing import NamedTuple, cast, get_args

import numpy as np
from PIL import Image
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, ProcessorMixin

from mmspec.errors import InputError
from mmspec.inputs.audio import AudioSource, open_audio
from mmspec.inputs.control_tokens import ControlMode
from mmspec.inputs.images import ImageSource, open_image
from mmspec.inputs.limits import InputLimits, Spending
from mmspec.inputs.messages import Conversation, Message, build_conversation, check_text
from mmspec.inputs.passages import PassageBlock, Passages, passage_list
from mmspec.inputs.prepared import from_inputs
from mmspec.inputs.prompt_text import PromptText
from mmspec.inputs.sources import is_of_machine
from mmspec.inputs.template import ToolSpec
from mmspec.inputs.videos import VideoSource, open_video
from mmspec.state import Prompt
from mmspec.words import counted

_INSTEAD = {  # of media that a processor does not take
    "image": "; process the prompt yourself and give its tensors",
    "video": "; give the frames as images, or install torchvision, which video processors need",
    "audio": "; the model cannot hear: give a transcript as text",
}


class _Opened(NamedTuple):
    """A prompt's media as a processor takes them."""

    images: Sequence[Image.Image]
    videos: Sequence[Sequence[Image.Image]]
    audio: Sequence[np.ndarray]

    @property
    def counts(self) -> dict[str, int]:
        return {"image": len(self.images), "video": len(self.videos), "audio": len(self.audio)}

    @property
    def told(self) -> str:
        heard = f" and {counted(len(self.audio), 'recording')}" if self.audio else ""
        seen = f"{counted(len(self.images), 'image')} and {counted(len(self.videos), 'video')}"
        return f"{seen}{heard}"


class InputProcessor:
    """Turns requests into prompts. Thread safe: images are opened side by side, the tokenizer and
    the processor, which are not thread safe, are used by one thread at a time."""

    def __init__(
        self,
        processor: ProcessorMixin | PreTrainedTokenizerBase,
        config: PreTrainedConfig,
        *,
        limits: InputLimits | None = None,
    ) -> None:
        """`processor`: the model's processor, or the tokenizer of a text-only model."""
        self.limits = limits or InputLimits()
        self._config = config
        self._lock = threading.Lock()
        self._processor = processor if isinstance(processor, ProcessorMixin) else None
        tokenizer = processor if self._processor is None else processor.tokenizer
        self.tokenizer = cast(PreTrainedTokenizerBase, tokenizer)
        self._placeholders = {
            kind: text
            for kind in ("image", "video", "audio")
            if self._processor is not None
            and isinstance(text := getattr(self._processor, f"{kind}_token", None), str)
        }
        self._texts = PromptText(
            self.tokenizer, processor=self._processor, placeholders=self._placeholders
        )

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        images: ImageSource | Sequence[ImageSource] = (),
        videos: VideoSource | Sequence[VideoSource] = (),
        audio: AudioSource | Sequence[AudioSource] = (),
        raw: bool = False,
        system: str | None = None,
        tools: Sequence[ToolSpec] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        passages: Passages = (),
        passage_template: str | None = None,
        template_arguments: Mapping[str, object] | None = None,
        control_tokens: ControlMode = "neutralise",
    ) -> Prompt:
        """One request -> one prompt.

        `prompt`: a string or chat messages (see `build_conversation`). They go through the chat
        template, which leaves an assistant turn open if the last message is one; a string goes
        in as it is with `raw=True`, or where the model has no template (then only its media
        placeholders are read, other control tokens are treated by `control_tokens`).
        `template_arguments`: further variables of the template, or "chat_template", which
        replaces it; they are the caller's own and not searched for control tokens.
        `passages` go into the last user message, or before a prompt without template, by
        `passage_template` (Jinja, with `passages` and `question`), and all of them into
        `Prompt.draft_texts`. `documents` are the chat template's own, where it has a place for
        them; the two don't touch.
        `control_tokens`: what to do with control and media tokens inside messages, tools and
        documents: `neutralise` makes them text, `refuse` raises, `parse` lets them act. In passages
        they are always made text.
        Raises InputError: media that cannot be opened, placeholders and media that differ in
        number, media for a text-only model, an empty prompt, what the template refuses.
        """
        if control_tokens not in get_args(ControlMode):
            raise InputError(
                f"got control_tokens={control_tokens!r}; expected one of {get_args(ControlMode)}"
            )
        given = passage_list(passages)
        block = PassageBlock.of(given, passage_template)
        conversation = build_conversation(
            prompt, images=images, videos=videos, audio=audio, system=system
        )
        self._check_modalities(conversation)
        with self._lock:
            template = None if raw else self._texts.find_template(template_arguments, tools)
        if template is None:
            is_plain = not (system or tools or documents or template_arguments)
            if not isinstance(prompt, str) or not is_plain:
                why = "raw=True" if raw else "this model has no chat template"
                raise InputError(
                    f"{why}: expected one string; got messages, a system prompt, tools, documents "
                    "or template arguments. Write the whole prompt as text, or give a template "
                    'with template_arguments={"chat_template": ...}'
                )
        media = self._opened(conversation)
        with self._lock:
            if template is None:
                assert isinstance(prompt, str)
                text = prompt if raw else self._texts.defuse(prompt, mode=control_tokens)
                text = text if block is None else self._texts.with_passages(text, block)
            else:
                if isinstance(prompt, str):
                    self._texts.warn_of_template(prompt, template)
                text = self._texts.render(
                    conversation,
                    template,
                    tools=tools,
                    documents=documents,
                    arguments=template_arguments,
                    mode=control_tokens,
                    block=block,
                )
            self._check_placeholders(text, media.counts)
            inputs = self._process(text, media, is_template=template is not None)
            beside = self._texts.draft_texts(given) if given else ()
        return replace(
            from_inputs(inputs, self._config, text=text),
            images=tuple(media.images),
            videos=tuple(tuple(video) for video in media.videos),
            audio=tuple(media.audio),
            draft_texts=beside,
        )

    def shows_tools(self, template_arguments: Mapping[str, object] | None = None) -> bool:
        """Whether the chat template writes tools into the prompt."""
        return "tools" in self.template_source(template_arguments, [{}])

    def template_source(
        self,
        template_arguments: Mapping[str, object] | None = None,
        tools: Sequence[ToolSpec] | None = None,
    ) -> str:
        """The chat template; "" where there is none, or several and none is the default."""
        try:
            with self._lock:
                template = self._texts.find_template(template_arguments, tools)
        except InputError:
            return ""
        return "" if template is None else template.source

    def draft_texts(self, passages: Passages) -> tuple[tuple[int, ...], ...]:
        """`Prompt.draft_texts` for a prompt that is processed already: none of the passages is
        put into it. Raises InputError for what is no passage."""
        beside = [replace(one, in_prompt=False) for one in passage_list(passages)]
        with self._lock:
            return self._texts.draft_texts(beside)

    def answer_tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of what an answer may be, -1 in place of control tokens that it spells out.

        Raises InputError for half characters."""
        check_text(text)
        with self._lock:
            return self._texts.answer_tokens(text)

    def mark_tokens(self, mark: str) -> tuple[int, ...]:
        """The tokens of a text of the model's own, control tokens among them."""
        with self._lock:
            return tuple(self.tokenizer(mark, add_special_tokens=False)["input_ids"])

    @property
    def placeholders(self) -> Mapping[str, str]:
        """What stands in a text for each kind of medium: "image" -> "<image>"."""
        return self._placeholders

    @property
    def sampling_rate(self) -> int:
        """Samples a second that the model hears. Raises InputError where it cannot."""
        extractor = self._part("audio")
        rate = getattr(extractor, "sampling_rate", None)
        if not isinstance(rate, int):
            raise InputError(
                f"the audio processor of {type(self._processor).__name__} names no sampling_rate; "
                "process the prompt yourself and give its tensors"
            )
        return rate

    def _opened(self, conversation: Conversation) -> _Opened:
        """Raises InputError, TooLargeError where all of them together are too much."""
        limits, spending = self.limits, Spending(self.limits)
        videos = [open_video(o, limits=limits, spending=spending) for o in conversation.videos]
        images = [open_image(o, limits=limits, spending=spending) for o in conversation.images]
        audio = [
            open_audio(o, rate=self.sampling_rate, limits=limits, spending=spending)
            for o in conversation.audio
        ]
        return _Opened(images, videos, audio)

    def _part(self, kind: str) -> object:
        """What of the processor reads media of this kind; None where it has no such part."""
        names = ("feature_extractor", "audio_processor") if kind == "audio" else ()
        found = (getattr(self._processor, name, None) for name in (*names, f"{kind}_processor"))
        return next((part for part in found if part is not None), None)

    def _sees_by_itself(self) -> bool:
        """Whether the processor takes images without a part that reads them: a class of the model's
        own, perhaps."""
        call = type(self._processor).__call__
        is_own = call is not ProcessorMixin.__call__ and "images" in signature(call).parameters
        return is_own and "image" in self._placeholders

    def _check_modalities(self, conversation: Conversation) -> None:
        name = getattr(self._config, "model_type", "") or type(self._config).__name__
        for kind, word, media in (
            ("image", "image", conversation.images),
            ("video", "video", conversation.videos),
            ("audio", "recording", conversation.audio),
        ):
            if not media:
                continue
            if self._processor is None:
                raise InputError(
                    f"got {counted(len(media), word)}, but {name} was loaded with a tokenizer "
                    "only: it is a text-only model, or its processor is missing; leave the "
                    f"{word}s out"
                )
            if self._part(kind) is None and not (kind == "image" and self._sees_by_itself()):
                raise InputError(
                    f"got {counted(len(media), word)}, but the processor of {name} "
                    f"({type(self._processor).__name__}) has no {kind} processor here"
                    + _INSTEAD.get(kind, "")
                )

    def _check_placeholders(self, text: str, counts: Mapping[str, int]) -> None:
        for kind, expected in counts.items():
            placeholder = self._placeholders.get(kind)
            if placeholder is None:
                continue
            got = text.count(placeholder)
            if got != expected:
                raise InputError(
                    f"got {counted(got, f'{kind} placeholder')} {placeholder!r} in the prompt and "
                    f"{counted(expected, kind)}; write {placeholder!r} once for each {kind}, "
                    "where it belongs"
                )

    def _process(
        self,
        text: str,
        media: _Opened,
        *,
        is_template: bool,
    ) -> dict[str, object]:
        bos = self.tokenizer.bos_token
        # As transformers does it: a tokenizer's template writes all special tokens itself, a
        # processor's only if it begins with the first of them.
        is_complete = is_template and self._processor is None
        adds_special = not (is_complete or (bos and text.startswith(bos)))
        inputs = self._call(text, media, adds_special=adds_special)
        ids = inputs["input_ids"]
        starts_twice = (
            isinstance(ids, Tensor)
            and bos is not None
            and (ids[0, :2].tolist() == [self.tokenizer.bos_token_id] * 2)
        )
        if adds_special and starts_twice:  # a processor that writes it into the text (Mllama)
            inputs = self._call(text, media, adds_special=False)
        return inputs

    def _call(
        self,
        text: str,
        media: _Opened,
        *,
        adds_special: bool,
    ) -> dict[str, object]:
        options: dict[str, object] = {"return_tensors": "pt"}
        if not adds_special:
            options["add_special_tokens"] = False
        try:
            if self._processor is None:
                inputs = dict(self.tokenizer(text, verbose=False, **options))
                inputs.pop("token_type_ids", None)  # of sentence pairs; decoders don't read them
                return inputs
            given: dict[str, object] = {}
            if media.images:
                given["images"] = [list(media.images)]
            if media.videos:
                given["videos"] = [list(frames) for frames in media.videos]
            if media.audio:
                given["audio"] = list(media.audio)
                given["audio_kwargs"] = {"sampling_rate": self.sampling_rate}
            return dict(self._processor(text=[text], **given, **options))
        except Exception as error:  # processors raise nearly anything
            if is_of_machine(error):
                raise
            owner = type(self._processor or self.tokenizer).__name__
            raise InputError(
                f"{owner} does not take this prompt with {media.told}: {error}"
            ) from error
