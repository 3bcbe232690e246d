"""What a user says -> chat messages in one form, with their media beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mmspec.errors import InputError
from mmspec.inputs.audio import AudioSource
from mmspec.inputs.images import ImageSource
from mmspec.inputs.media_shares import MediaField, media_list
from mmspec.inputs.videos import VideoSource
from mmspec.state import MediaKind
from mmspec.words import counted

Message = Mapping[str, object]
"""{"role": ..., "content": a string or a list of parts}, and what else the chat template reads."""

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")

_TEXT_TYPES = ("text", "input_text", "output_text")
_MEDIA_TYPES: dict[str, MediaKind] = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "audio"),
}
_DATA_KEYS: dict[MediaKind, tuple[str, ...]] = {
    "image": ("image", "image_url", "url", "path", "base64"),
    "video": ("video", "video_url", "url", "path"),
    "audio": ("audio", "audio_url", "input_audio", "url", "path", "base64"),
}
_FIELDS: dict[MediaKind, MediaField] = {"image": "images", "video": "videos", "audio": "audio"}


@dataclass(frozen=True)
class Conversation:
    """Messages whose content is a list of {"type": "text", "text": ...}, {"type": "image"},
    {"type": "video"} and {"type": "audio"}; the media, not opened yet, in the order of their
    parts."""

    messages: tuple[dict[str, object], ...]
    images: tuple[ImageSource, ...]
    videos: tuple[VideoSource, ...]
    audio: tuple[AudioSource, ...] = ()

    @property
    def is_begun(self) -> bool:
        """Whether the last message is an assistant turn to be continued."""
        return self.messages[-1]["role"] == "assistant"


def build_conversation(
    prompt: str | Sequence[Message],
    *,
    images: ImageSource | Sequence[ImageSource] = (),
    videos: VideoSource | Sequence[VideoSource] = (),
    audio: AudioSource | Sequence[AudioSource] = (),
    system: str | None = None,
) -> Conversation:
    """One conversation from a plain string or from messages in Hugging Face or OpenAI form.

    A string becomes one user message: the images, the videos, the recordings, then the text.
    In messages, media parts without data take `images`, `videos` and `audio` in order. `system`
    becomes the first message. An empty begun assistant turn is dropped, since it is the same as
    none.
    Raises InputError: an unknown role or part, counts of placeholders and media that
    differ, an empty conversation, one that ends with calls.
    """
    given = {"images": images, "videos": videos, "audio": audio}
    loose = {kind: media_list(field, given[field]) for kind, field in _FIELDS.items()}
    if isinstance(prompt, str):
        parts: list[object] = [{"type": kind} for kind in loose for _ in loose[kind]]
        prompt = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
    elif not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise InputError(
            f"got a prompt of type {type(prompt).__name__}; expected a text, or a list of chat "
            'messages such as {"role": "user", "content": "..."}'
        )
    has_own = any(_get(message, "role") == "system" for message in prompt)
    if system and has_own:
        raise InputError("got system= and a message with the role 'system'; give one of the two")
    if system is not None and not has_own:
        prompt = [{"role": "system", "content": system}, *prompt]
    reader = _Reader()
    messages = [reader.read_message(message) for message in prompt]
    if messages and messages[-1]["role"] == "assistant" and _is_blank(messages[-1]):
        messages.pop()
    if messages and messages[-1]["role"] == "assistant" and messages[-1].get("tool_calls"):
        # Templates write calls behind the text: to go on with that is to leave them out.
        raise InputError(
            "the last message calls tools; expected messages of the role 'tool' behind it, with "
            "what they said"
        )
    if all(_is_blank(message) for message in messages if message["role"] != "system"):
        raise InputError("the prompt is empty; expected a text or a medium in a message")
    for kind, gaps in reader.gaps.items():
        if len(gaps) != len(loose[kind]):
            raise InputError(
                f"got {counted(len(gaps), f'{kind} placeholder')} without data in the messages and "
                f'{len(loose[kind])} in {_FIELDS[kind]}=; add or remove {{"type": "{kind}"}} '
                f"parts or {_FIELDS[kind]} until the counts agree"
            )
        for gap, medium in zip(gaps, loose[kind], strict=True):
            reader.media[kind][gap] = medium
    return Conversation(
        messages=tuple(messages),
        images=tuple(reader.media["image"]),  # type: ignore[arg-type]
        videos=tuple(reader.media["video"]),  # type: ignore[arg-type]
        audio=tuple(reader.media["audio"]),  # type: ignore[arg-type]
    )


def says_system(prompt: object) -> bool:
    """Whether these are messages with a system prompt of their own."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return False
    return any(_get(message, "role") in ("system", "developer") for message in prompt)


def check_text(text: str) -> str:
    """The text itself. Raises InputError for half a character, which no tokenizer takes: bytes that
    are not UTF-8 come so out of file names and command lines."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"got a text with a lone surrogate, {text[error.start]!r}, as its character "
            f"{error.start}; expected whole characters: decode the bytes that it was made of as "
            'UTF-8, with errors="replace"'
        ) from error
    return text


class _Reader:
    """Reads messages one by one and collects their media; a gap is a placeholder without data."""

    def __init__(self) -> None:
        self.media: dict[MediaKind, list[object]] = {kind: [] for kind in _DATA_KEYS}
        self.gaps: dict[MediaKind, list[int]] = {kind: [] for kind in _DATA_KEYS}

    def read_message(self, message: object) -> dict[str, object]:
        if not isinstance(message, Mapping):
            hint = '; token ids go in as {"input_ids": tensor}' if isinstance(message, int) else ""
            raise InputError(
                f"got a message of type {type(message).__name__}; expected "
                f'{{"role": "user", "content": "..."}}{hint}'
            )
        role, content = message.get("role"), message.get("content")
        if role is None and "prompt" in message:
            raise InputError(
                f"got a mapping with the keys {sorted(map(str, message))} among the messages; "
                "expected mmspec.Request(prompt=...) for each request of a batch"
            )
        if role not in ROLES:
            raise InputError(f"got a message with the role {role!r}; expected one of {ROLES}")
        parts: list[dict[str, object]] = []
        if isinstance(content, str):
            parts = [{"type": "text", "text": check_text(content)}] if content else []
        elif isinstance(content, Iterable) and not isinstance(content, bytes | Mapping):
            parts = [self._read_part(part) for part in content]
        elif content is not None or role != "assistant" or message.keys() <= {"role", "content"}:
            raise InputError(
                f"the {role} message has content of type {type(content).__name__}; expected a "
                "string or a list of parts"
            )
        # A missing key is what templates handle; a None many of them print.
        rest = {key: value for key, value in message.items() if value is not None}
        return {**rest, "role": role, "content": parts}

    def _read_part(self, part: object) -> dict[str, object]:
        kind = _get(part, "type")
        if kind in _TEXT_TYPES:
            text = _get(part, "text")
            if not isinstance(text, str):
                raise InputError(f'got a text part {part!r:.80}; expected {{"text": "..."}} in it')
            return {"type": "text", "text": check_text(text)}
        if isinstance(kind, str) and kind in _MEDIA_TYPES:
            return self._read_media(part, _MEDIA_TYPES[kind])
        raise InputError(
            f"got a message part {part!r:.80}; expected a mapping whose type is one of "
            f"{(*_TEXT_TYPES, *_MEDIA_TYPES)}"
        )

    def _read_media(self, part: object, kind: MediaKind) -> dict[str, object]:
        found = [(key, _get(part, key)) for key in _DATA_KEYS[kind]]
        given = [(key, value) for key, value in found if value is not None]
        if len(given) > 1:
            raise InputError(
                f"a part of type {kind!r} has data under {[key for key, _ in given]}; expected one "
                "of them"
            )
        if not given:
            if _get(part, "type") not in _DATA_KEYS:
                raise InputError(
                    f"a part of type {_get(part, 'type')!r} has no data; expected "
                    f'{{"type": "{kind}_url", "{kind}_url": {{"url": "..."}}}}'
                )
            self.gaps[kind].append(len(self.media[kind]))
            self.media[kind].append(None)
            return {"type": kind}
        key, value = given[0]
        if key == "input_audio" and isinstance(value, Mapping) and "data" in value:
            key, value = "base64", value["data"]  # OpenAI's form; the bytes tell their format
        if isinstance(value, Mapping) and not (kind == "audio" and "array" in value):
            value = value.get("url")
            if not isinstance(value, str):
                raise InputError(f"the {key} of a part has no url; expected {{'url': '...'}}")
        if key == "base64" and isinstance(value, str) and not value.startswith("data:"):
            value = f"data:{kind}/*;base64,{value}"
        if isinstance(value, str) and not value:
            raise InputError(f"the {key} of a part is an empty string; expected a path or URL")
        self.media[kind].append(value)
        return {"type": kind}


def _get(mapping: object, key: str) -> object:
    return mapping.get(key) if isinstance(mapping, Mapping) else None


def _is_blank(message: Mapping[str, object]) -> bool:
    """No text, no media, and nothing else a template could render (tool calls, ...)."""
    parts = message["content"]
    assert isinstance(parts, list)
    is_bare = all(part["type"] == "text" and not part["text"].strip() for part in parts)
    return is_bare and not set(message) - {"role", "content"}
