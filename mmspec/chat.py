"""Chat: a conversation whose earlier turns are not computed again."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mmspec.answers import Stream
from mmspec.engine import Engine
from mmspec.inputs import AudioSource, ImageSource, VideoSource
from mmspec.inputs.media_shares import media_list
from mmspec.reading import Answer, AnswerPieces, Guide, Reading
from mmspec.requests import Request, Result, build_request


class Chat:
    """Questions and answers, each asked with all that was said before.

    Its messages are rendered anew at each turn, as the model's template has it; whatever of them
    is in the engine's prefix store, token by token, is taken from there. So it is exact also where
    a template changes what it showed before, and where the store has dropped a part. Reasoning of
    earlier answers stands apart: what to show of it is the template's to say.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        images: ImageSource | Sequence[ImageSource] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """`images` go with the first question; `options` are fields of `Request`, which a turn's
        own options override. Raises InputError for a wrong option."""
        build_request("", options or {})  # now, and not with the first question
        self.messages: list[dict[str, Any]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._engine = engine
        self._images = media_list("images", images)
        self._options = dict(options or {})

    def send(
        self,
        question: str,
        *,
        images: ImageSource | Sequence[ImageSource] = (),
        videos: VideoSource | Sequence[VideoSource] = (),
        audio: AudioSource | Sequence[AudioSource] = (),
        **options: Any,
    ) -> Result:
        """Asks, and returns the answer; both join `messages`. Where it fails, they stay as they
        were. `options` are fields of `Request`, for this turn."""
        messages, request = self._asked(question, images, videos, audio, options)
        result = self._engine.generate(request)
        self._answered(messages, request, result)
        return result

    def stream(
        self,
        question: str,
        *,
        images: ImageSource | Sequence[ImageSource] = (),
        videos: VideoSource | Sequence[VideoSource] = (),
        audio: AudioSource | Sequence[AudioSource] = (),
        **options: Any,
    ) -> Stream:
        """As `send`, a piece of text at a time. The turn joins `messages` when the stream ends, or
        with what there is of the answer when it is closed."""
        messages, request = self._asked(question, images, videos, audio, options)
        stream = self._engine.stream(request)
        stream.on_end = partial(self._answered, messages, request)
        return stream

    def stream_answer(
        self,
        question: str,
        *,
        images: ImageSource | Sequence[ImageSource] = (),
        videos: VideoSource | Sequence[VideoSource] = (),
        audio: AudioSource | Sequence[AudioSource] = (),
        **options: Any,
    ) -> AnswerPieces:
        """As `stream`, with reasoning and text told apart and the marks left out; an answer that
        follows a grammar does so behind its reasoning."""
        messages, request = self._asked(question, images, videos, audio, options)
        reading = Reading(self._engine.inputs, replace(request, tools=None))
        stream = self._engine.stream(reading.request)
        stream.on_end = lambda result: self._join(messages, reading.answer(result))
        return AnswerPieces(stream, reading)

    def _asked(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource],
        videos: VideoSource | Sequence[VideoSource],
        audio: AudioSource | Sequence[AudioSource],
        options: Mapping[str, Any],
    ) -> tuple[list[dict[str, Any]], Request]:
        """The messages with the question, its media first, and the request that asks them."""
        is_first = not any(message["role"] == "user" for message in self.messages)
        pictures = [*(self._images if is_first else ()), *media_list("images", images)]
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in pictures]
        parts += [{"type": "video", "video": video} for video in media_list("videos", videos)]
        parts += [{"type": "audio", "audio": one} for one in media_list("audio", audio)]
        content = [*parts, {"type": "text", "text": question}]
        messages = [*self.messages, {"role": "user", "content": content}]
        return messages, self._engine.prepare(messages, **{**self._options, **options})

    def _answered(self, messages: list[dict[str, Any]], request: Request, result: Result) -> None:
        answer = Answer(result, result.text)
        if not any(isinstance(one, Guide) for one in request.logits_processors):
            # Nobody makes its calls here: they stay text.
            reading = Reading(self._engine.inputs, replace(request, tools=None))
            answer = reading.answer_of_tokens(result)
        self._join(messages, answer)

    def _join(self, messages: list[dict[str, Any]], answer: Answer) -> None:
        if answer.result.error is not None or not answer.result.tokens:
            return
        told: dict[str, Any] = {"role": "assistant"}
        told["content"] = [{"type": "text", "text": answer.text}]
        if answer.reasoning:
            told["reasoning_content"] = answer.reasoning
        self.messages = [*messages, told]
