"""One medium or several? And of a call with several prompts, which medium is whose?"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Set
from typing import Any, Literal

from mmspec.errors import InputError
from mmspec.inputs.audio import is_one_recording
from mmspec.inputs.images import is_one_image
from mmspec.inputs.videos import is_one_video
from mmspec.words import counted

MediaField = Literal["images", "videos", "audio"]
_IS_ONE: dict[str, Callable[[object], bool]] = {
    "images": is_one_image,
    "videos": is_one_video,
    "audio": is_one_recording,
}
_SINGULAR = {"images": "image", "videos": "video", "audio": "recording"}
_NO_MORE = object()


def media_list(field: MediaField, given: object) -> list[Any]:
    """What a request has in this field, one medium or several; None is none."""
    if given is None:
        return []
    return list(given) if _is_several(field, given) else [given]  # type: ignore[call-overload]


def _is_several(field: str, given: object) -> bool:
    """What is no medium either (a mapping, a set without order) is told when it is opened."""
    is_ordered = isinstance(given, Iterable) and not isinstance(given, Mapping | Set)
    return is_ordered and not _IS_ONE[field](given)


class MediaShares:
    """Which of `images`, `videos` and `audio` goes with which of several prompts.

    A single medium goes with each prompt. Of several, a list or what else can be iterated over, the
    first is the first prompt's own, and so on: one medium, a list of them, or None for none. They
    are taken one by one, in the prompts' order.
    """

    def __init__(self, options: Mapping[str, object], prompts: Iterable[object]) -> None:
        """`options` are fields of `Request`. Raises InputError where there are as many media as
        prompts that can be counted, and the counts differ."""
        self._for_all: dict[str, object] = {}
        self._own: dict[str, Iterator[object]] = {}
        self._num_taken = 0
        for name, given in options.items():
            if name not in _IS_ONE or not _is_several(name, given):
                self._for_all[name] = given
                continue
            assert isinstance(given, Iterable)
            if not isinstance(given, Collection) or len(given):
                if isinstance(given, Collection) and isinstance(prompts, Collection):
                    _check_counts(name, len(given), len(prompts))
                self._own[name] = iter(given)

    def next(self) -> dict[str, object]:
        """The options of the next prompt. Raises InputError where the media of its kind have run
        out."""
        found = dict(self._for_all)
        self._num_taken += 1
        for name, media in self._own.items():
            own = next(media, _NO_MORE)
            if own is _NO_MORE:
                raise InputError(
                    f"got {name}= for {counted(self._num_taken - 1, 'prompt')}, and this is one "
                    "more; "
                    f"{_expected(name, 'as many as prompts')}"
                )
            if own is not None:
                found[name] = own
        return found

    def check_end(self) -> None:
        """Raises InputError where media are left: there are no more prompts."""
        for name, media in self._own.items():
            if next(media, _NO_MORE) is not _NO_MORE:
                raise InputError(
                    f"got more {name}= than {counted(self._num_taken, 'prompt')}, answered by now; "
                    f"{_expected(name, 'as many as prompts')}"
                )


def _check_counts(name: str, num_media: int, num_prompts: int) -> None:
    if num_media != num_prompts:
        some = f"[{', '.join('abcd'[:num_media])}{', ...' if num_media > 4 else ''}]"
        times = f" * {num_prompts}" if num_prompts > 1 else ""
        raise InputError(
            f"got {name}= of {num_media} for {counted(num_prompts, 'prompt')}; "
            f"{_expected(name, str(num_prompts))}; for all of them with each prompt: "
            f"{name}=[{some}]{times}"
        )


def _expected(name: str, count: str) -> str:
    one = _SINGULAR[name]
    return (
        f"expected one {one}, which goes with each prompt, or a list of {count}: each prompt's own "
        f"{one}, list of them, or None"
    )
