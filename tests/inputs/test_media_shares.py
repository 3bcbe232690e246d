"""Media of a call with several prompts: a single one for all, several one prompt each."""

import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmspec.errors import InputError
from mmspec.inputs import open_image
from mmspec.inputs.media_shares import MediaShares, media_list

PICTURE = Image.new("RGB", (2, 2))
FRAMES = [PICTURE, PICTURE]
HEARD = (np.zeros(4, np.float32), 16000)


def shared(prompts: Iterable[object], **options: Any) -> list[dict[str, object]]:
    shares = MediaShares(options, prompts)
    found = [shares.next() for _ in prompts]
    shares.check_end()
    return found


@pytest.mark.parametrize(
    ("name", "one"),
    [
        ("images", "a.png"),
        ("images", PICTURE),
        ("images", b"data"),
        ("images", io.BytesIO()),  # which can be iterated over
        ("images", np.zeros((2, 2, 3), np.uint8)),
        ("images", torch.zeros(3, 2, 2)),
        ("images", {"a.png", "b.png"}),  # which is first?
        ("images", {"path": "a.png"}),
        ("videos", io.BytesIO()),
        ("videos", "a.gif"),
        ("videos", FRAMES),  # as many frames as prompts: one video all the same
        ("videos", np.zeros((2, 2, 2, 3), np.uint8)),
        ("audio", "a.wav"),
        ("audio", HEARD),  # two things, as many as prompts
        ("audio", {"array": HEARD[0], "sampling_rate": 16000}),
        ("seed", [1, 2]),  # other options are no media
    ],
)
def test_a_single_medium_goes_with_each_prompt(name: str, one: object) -> None:
    first, second = shared(["p", "q"], **{name: one})
    assert first[name] is one and second[name] is one


def test_of_one_request_there_may_be_none_one_or_several() -> None:
    assert media_list("images", None) == media_list("audio", ()) == []
    assert media_list("images", "a.png") == ["a.png"]
    assert media_list("images", (name for name in ("a.png", "b.png"))) == ["a.png", "b.png"]
    with pytest.raises(InputError, match=r"an image of type set; .*, or a list of several"):
        open_image(*media_list("images", {"a.png", "b.png"}))
    with pytest.raises(InputError, match="an image of type dict"):
        open_image(*media_list("images", {"path": "a.png"}))


@pytest.mark.parametrize(
    ("name", "several"),
    [
        ("images", ["a.png", "b.png"]),
        ("images", ("a.png", ["b.png", "c.png"])),
        ("images", [[], PICTURE]),
        ("videos", [FRAMES, "b.gif"]),
        ("videos", [[FRAMES, FRAMES], [FRAMES]]),
        ("audio", [HEARD, "b.wav"]),
        ("audio", [["a.wav", HEARD], HEARD]),
    ],
)
def test_several_are_one_prompts_own_each(name: str, several: Any) -> None:
    found = shared(["p", "q"], **{name: several})
    assert [own[name] for own in found] == list(several)
    from_iterators = MediaShares({name: iter(several)}, iter("pq"))
    assert [from_iterators.next()[name] for _ in "pq"] == list(several)


def test_none_leaves_a_prompt_with_what_it_has_and_an_empty_list_says_nothing() -> None:
    assert shared(["p", "q"], images=["a.png", None], top_k=3) == [
        {"images": "a.png", "top_k": 3},
        {"top_k": 3},
    ]
    assert shared(["p", "q"], images=[], audio=()) == [{}, {}]


def test_counts_that_differ_are_told_with_the_ways_out() -> None:
    words = (
        r"got images= of 3 for 2 prompts; expected one image, which goes with each prompt, or a "
        r"list of 2: .*images=\[\[a, b, c\]\] \* 2"
    )
    with pytest.raises(InputError, match=words):
        MediaShares({"images": ["a.png"] * 3}, ["p", "q"])
    with pytest.raises(InputError, match=r"audio= of 1 for 2 prompts; expected one recording"):
        MediaShares({"audio": [HEARD]}, ["p", "q"])
    with pytest.raises(
        InputError, match=r"videos= of 5 for 1 prompt;.*\[\[a, b, c, d, \.\.\.\]\]$"
    ):
        MediaShares({"videos": ["a.gif"] * 5}, ["p"])


def test_of_iterators_the_difference_is_told_where_it_shows() -> None:
    few = MediaShares({"images": iter(["a.png"])}, ["p", "q"])
    few.next()
    with pytest.raises(InputError, match="got images= for 1 prompt, and this is one more"):
        few.next()
    with pytest.raises(InputError, match="got more images= than 1 prompt, answered"):
        shared(["p"], images=iter(["a.png", "b.png"]))
