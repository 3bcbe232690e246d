"""User input becomes one form of chat messages, its media in order beside them."""

import pytest

from mmspec.errors import InputError
from mmspec.inputs import Message, build_conversation

TEXT = {"type": "text", "text": "What?"}


def test_a_string_becomes_one_user_message_with_the_media_first() -> None:
    conversation = build_conversation("What?", images=["a.png", "b.png"], videos="c.gif")
    media = [{"type": "image"}, {"type": "image"}, {"type": "video"}]
    assert conversation.messages == ({"role": "user", "content": [*media, TEXT]},)
    assert conversation.images == ("a.png", "b.png")
    assert conversation.videos == ("c.gif",)


def test_an_empty_system_beside_one_of_the_prompt_is_none() -> None:
    """As a table's cell has it; alone it says that there is none of the template's own either."""
    own = {"role": "system", "content": "Be brief."}
    asked = {"role": "user", "content": "What?"}
    messages = build_conversation([own, asked], system="").messages
    assert [message["role"] for message in messages] == ["system", "user"]
    (first, _) = build_conversation([asked], system="").messages
    assert first["role"] == "system"


def test_system_goes_in_front() -> None:
    conversation = build_conversation("What?", system="Be brief.")
    assert [message["role"] for message in conversation.messages] == ["system", "user"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "a.png"},
        {"type": "image", "url": "a.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}},
        {"type": "image_url", "image_url": "a.png"},
        {"type": "input_image", "image_url": "a.png"},
    ],
)
def test_every_form_of_an_image_part_is_read(part: Message) -> None:
    conversation = build_conversation([{"role": "user", "content": [TEXT, part]}])
    assert conversation.messages[0]["content"] == [TEXT, {"type": "image"}]
    assert conversation.images == ("a.png",)


def test_other_forms_of_text_video_and_base64_are_read() -> None:
    content = [
        {"type": "input_text", "text": "What?"},
        {"type": "video_url", "video_url": {"url": "c.gif"}},
        {"type": "image", "base64": "QUJD"},
    ]
    conversation = build_conversation([{"role": "user", "content": content}])
    assert conversation.messages[0]["content"] == [TEXT, {"type": "video"}, {"type": "image"}]
    assert conversation.videos == ("c.gif",)
    assert conversation.images == ("data:image/*;base64,QUJD",)


def user(*parts: object) -> list[Message]:
    return [{"role": "user", "content": list(parts)}]


def test_gaps_take_the_loose_images_in_order() -> None:
    messages: list[Message] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "image", "path": "own.png"}]},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": [{"type": "image"}, TEXT]},
    ]
    conversation = build_conversation(messages, images=["first.png", "second.png"])
    assert conversation.images == ("first.png", "own.png", "second.png")
    assert messages[0]["content"] == [{"type": "image"}, {"type": "image", "path": "own.png"}]


def test_begun_turns_stay_open_and_empty_ones_are_dropped() -> None:
    user = {"role": "user", "content": "What?"}
    assert build_conversation([user, {"role": "assistant", "content": "The"}]).is_begun
    empty = build_conversation([user, {"role": "assistant", "content": ""}])
    assert len(empty.messages) == 1 and not empty.is_begun


def test_other_keys_travel_and_none_is_dropped() -> None:
    call: Message = {"role": "assistant", "content": None, "tool_calls": [{"id": 1}], "name": None}
    conversation = build_conversation(
        [{"role": "user", "content": "Go"}, call, {"role": "tool", "content": "", "name": "f"}]
    )
    assert conversation.messages[1] == {
        "role": "assistant",
        "content": [],
        "tool_calls": [{"id": 1}],
    }
    assert conversation.messages[2]["name"] == "f"
    without: Message = {"role": "assistant", "tool_calls": [{"id": 1}]}
    (_, told, _) = build_conversation([*user(TEXT), without, *user(TEXT)]).messages
    assert told == {**without, "content": []}


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("", {}, ["empty"]),
        ("  \n", {}, ["empty"]),
        ([], {}, ["empty"]),
        (None, {}, ["NoneType", "expected a text"]),
        (3, {}, ["type int"]),
        (b"x", {}, ["type bytes"]),
        ("caf\udce9", {}, ["lone surrogate", "'\\udce9'", "character 3", "UTF-8"]),
        (user({"type": "text", "text": "\ud800"}), {}, ["lone surrogate"]),
        ([{"role": "system", "content": "Be brief."}], {}, ["empty"]),
        ([{"role": "user", "content": ""}], {}, ["empty"]),
        ([{"role": "robot", "content": "x"}], {}, ["'robot'", "user"]),
        ([{"content": "x"}], {}, ["None", "expected one of"]),
        ([{"prompt": "x"}], {}, ["mmspec.Request(prompt=...)"]),
        ([{"role": "robot", "prompt": "x"}], {}, ["'robot'"]),
        (["x"], {}, ["type str", '"role"']),
        ([{"role": "user", "content": None}], {}, ["NoneType", "list of parts"]),
        ([{"role": "assistant", "content": None}], {}, ["NoneType", "list of parts"]),
        (
            [*user(TEXT), {"role": "assistant", "content": "I", "tool_calls": [{"id": 1}]}],
            {},
            ["calls tools", "'tool'"],
        ),
        ([{"role": "user", "content": 3}], {}, ["int"]),
        ([{"role": "user", "content": b"x"}], {}, ["content of type bytes"]),
        ([{"role": "user", "content": TEXT}], {}, ["content of type dict"]),
        (user("x"), {}, ["'x'", "a mapping"]),
        (user({"type": "hologram"}), {}, ["hologram", "image_url"]),
        (user({"type": ["image"]}), {}, ["['image']", "image_url"]),
        (user({"type": "text"}), {}, ["text part"]),
        (user({"type": "audio", "url": "a", "path": "b"}), {}, ["['url', 'path']"]),
        (user({"type": "input_audio"}), {}, ["'input_audio'", "no data", "audio_url"]),
        (user({"type": "audio"}), {}, ["1 audio placeholder ", "0 in audio="]),
        (user({"type": "image_url"}), {}, ["no data", "image_url"]),
        (user({"type": "image_url", "image_url": {}}), {}, ["no url"]),
        (user({"type": "image", "url": "a", "path": "b"}), {}, ["['url', 'path']"]),
        (user({"type": "image", "url": ""}), {}, ["empty string"]),
        (user({"type": "image"}), {}, ["got 1 image placeholder ", "0 in images="]),
        (user(TEXT), {"images": "a.png"}, ["got 0 image", "1 in images=", '{"type": "image"}']),
        (user({"type": "video"}), {"images": "a.png"}, ["0 image", "1 in images="]),
        (
            [{"role": "system", "content": "x"}, *user(TEXT)],
            {"system": "y"},
            ["system=", "one of the two"],
        ),
    ],
)
def test_a_bad_conversation_is_a_clear_error(
    prompt: str | list[Message], options: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        build_conversation(prompt, **options)
    for word in words:
        assert word in str(caught.value)
