"""Videos become lists of RGB frames, bounded in number and pixels."""

import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmspec.errors import InputError
from mmspec.inputs import InputLimits, VideoSource, open_video
from mmspec.inputs.media_shares import media_list

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
FRAMES = [Image.new("RGB", (6, 4), colour) for colour in COLOURS]


def animation(kind: str) -> bytes:
    buffer = io.BytesIO()
    lossless = {"lossless": True} if kind == "WEBP" else {}
    FRAMES[0].save(buffer, kind, save_all=True, append_images=FRAMES[1:], **lossless)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "source",
    [
        FRAMES,
        tuple(FRAMES),
        np.stack([np.asarray(frame) for frame in FRAMES]),
        animation("GIF"),
        animation("WEBP"),
        animation("PNG"),
        io.BytesIO(animation("GIF")),
    ],
    ids=["list", "tuple", "array", "gif", "webp", "png", "file"],
)
def test_every_kind_of_source_gives_the_frames_in_order(source: VideoSource) -> None:
    frames = open_video(source)
    assert [frame.getpixel((1, 1)) for frame in frames] == COLOURS
    assert {frame.mode for frame in frames} == {"RGB"}


def test_a_path_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "three.gif"
    path.write_bytes(animation("GIF"))
    assert len(open_video(path)) == 3


def test_one_video_and_many_are_told_apart() -> None:
    array = np.zeros((3, 4, 6, 3), np.uint8)
    assert len(media_list("videos", array)) == 1
    assert len(media_list("videos", "a.gif")) == 1
    assert len(media_list("videos", FRAMES)) == 1
    assert len(media_list("videos", [FRAMES, FRAMES])) == 2
    assert len(media_list("videos", ["a.gif", "b.gif"])) == 2
    assert len(media_list("videos", [array, array])) == 2
    assert media_list("videos", []) == []


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], ["no frames", "at least one"]),
        (np.zeros((4, 6, 3), np.uint8), ["(4, 6, 3)", "(frames, height, width, channels)"]),
        ("film.mp4", ["film.mp4", "extract frames", "'av'"]),
        (b"\0\0\0\x18ftypisom" + b"\0" * 40, ["extract frames"]),
        (b"\x1a\x45\xdf\xa3" + b"\0" * 40, ["extract frames"]),
        (b"no video at all", ["not an image"]),
        (animation("GIF")[:60], ["truncated"]),
        (7, ["int", "a list of images"]),
        ([FRAMES[0], "no/such.png"], ["no such file"]),
    ],
)
def test_a_bad_video_is_a_clear_error(
    source: VideoSource, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # as where it is not installed
    with pytest.raises(InputError) as caught:
        open_video(source)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "limits", [InputLimits(max_video_frames=2), InputLimits(max_video_pixels=50)]
)
def test_long_videos_are_refused_before_all_of_it_is_decoded(limits: InputLimits) -> None:
    with pytest.raises(InputError, match="fewer or smaller frames"):
        open_video(animation("GIF"), limits=limits)


def test_containers_are_decoded_where_av_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Frame:
        def __init__(self, image: Image.Image) -> None:
            self.to_image = lambda: image

    class Container:
        def __enter__(self) -> "Container":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def decode(self, video: int) -> list[Frame]:
            return [Frame(image) for image in FRAMES]

    module = types.ModuleType("av")
    module.open = lambda stream, options: Container()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "av", module)
    path = tmp_path / "film.mp4"
    path.write_bytes(b"\0\0\0\x18ftypisom")
    assert open_video(path) == FRAMES


def test_a_playlist_opens_no_file_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av", reason="decodes containers")
    with av.open(tmp_path / "own.mp4", "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for frame in (av.VideoFrame.from_image(Image.new("RGB", (64, 48))), None):
            file.mux(stream.encode(frame))
    monkeypatch.chdir(tmp_path)
    whole = (tmp_path / "own.mp4").read_bytes()
    assert [frame.size for frame in open_video(whole)] == [(64, 48)]
    with pytest.raises(InputError, match="is not a video that can be decoded"):
        open_video(
            "data:,ffconcat%20version%201.0%0Afile%20own.mp4", limits=InputLimits(allow_files=False)
        )
