"""Requests that cannot become prompts: each a clear InputError that says how to mend it."""

import errno
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import GifImagePlugin, Image, ImageFile
from transformers import LlamaConfig, LlavaConfig, Qwen2VLProcessor

from inputs.media_families import build_family
from inputs.text_families import build_tokenizer
from mmspec.errors import InputError
from mmspec.inputs import InputLimits, InputProcessor, Message

RED = Image.new("RGB", (28, 28), (255, 0, 0))
BLUE = Image.new("RGB", (28, 28), (0, 0, 255))


def encoded(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    RED.save(file, kind, **options)
    return file.getvalue()


PNG, GIF = encoded("PNG"), encoded("GIF", save_all=True, append_images=[BLUE])


def image_message(text: str) -> list[Message]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def text_processor(name: str) -> InputProcessor:
    return InputProcessor(build_tokenizer(name), LlamaConfig())


@pytest.mark.parametrize(
    ("name", "prompt", "options", "words"),
    [
        ("llava", "What?", {"images": RED, "raw": True}, ["got 0 image", "'<image>'", "1 image;"]),
        ("llava", "<image>What?", {"raw": True}, ["got 1 image", "'<image>'", "0 images"]),
        ("qwen2_vl", "What?", {"images": RED, "raw": True}, ["'<|image_pad|>'"]),
        ("gemma3", "What?", {"images": RED, "raw": True}, ["'<start_of_image>'"]),
        ("paligemma", "What?", {"images": RED}, ["got 0 image", "'<image>'"]),
        ("paligemma", "What?", {}, ["PaliGemmaProcessor"]),
        ("paligemma", image_message("What?"), {"images": RED}, ["no chat template", "as text"]),
        ("llava", image_message("What?"), {}, ["1 image placeholder ", "0 in images="]),
        ("llava", "What?", {"images": "no.png"}, ["no such file"]),
        ("llava", "What?", {"videos": [[RED, BLUE]]}, ["llava", "no video processor", "frames"]),
        ("llava", "", {"raw": True}, ["empty"]),
        ("llava", "", {}, ["empty"]),
        ("llava", "x", {"raw": True, "system": "y"}, ["raw=True", "Write the whole prompt"]),
        ("llava", image_message("x"), {"raw": True, "images": RED}, ["raw=True"]),
        ("llava", "x", {"tools": [{"name": "f"}]}, ["tools=", "does not use"]),
        ("llava", "x", {"template_arguments": {"chat_template": Path("a")}}, ["Path", "text, or"]),
        ("llava", "x", {"documents": [{"text": "y"}]}, ["documents=", "does not use"]),
        ("llava", "x", {"control_tokens": "maybe"}, ["'maybe'", "neutralise"]),
    ],
)
def test_a_bad_request_is_a_clear_error(
    name: str, prompt: str | list[Message], options: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        family = build_family(name)
        InputProcessor(family.processor, family.config).encode(
            prompt,
            **options,  # type: ignore[arg-type]
        )
    for word in words:
        assert word in str(caught.value)


def test_a_text_model_refuses_images_by_name() -> None:
    for options in ({"images": RED}, {"videos": [RED]}):
        with pytest.raises(InputError, match="llama was loaded with a tokenizer only"):
            text_processor("llama3").encode("What?", **options)


def test_a_model_without_a_template_refuses_messages() -> None:
    with pytest.raises(InputError, match=r"no chat template.*Write the whole prompt as text"):
        text_processor("gpt2").encode([{"role": "user", "content": "Hi"}])


def test_a_placeholder_id_without_an_image_is_refused_for_a_bare_tokenizer() -> None:
    tokenizer = build_family("llava").processor.tokenizer
    config = LlavaConfig(image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    with pytest.raises(InputError, match="no pixel values"):
        InputProcessor(tokenizer, config).encode("<image>What?", raw=True)


def test_what_the_template_refuses_is_an_input_error() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    for chat_template in (
        *(template, "{% for", "{{ messages[7].content.x }}"),
        *("{{ 1 // 0 }}", "{{ deep | tojson }}"),
    ):
        arguments = {"chat_template": chat_template, "deep": deep}
        with pytest.raises(InputError, match="chat template does not take"):
            text_processor("qwen").encode("x", template_arguments=arguments)


@pytest.mark.parametrize("name", ["add_generation_prompt", "continue_final_message", "tokenize"])
def test_what_the_messages_say_themselves_is_no_template_argument(name: str) -> None:
    given = {"chat_template": "{{ messages }}", name: True}
    with pytest.raises(InputError, match=f"got {name} among template_arguments; leave it out"):
        text_processor("qwen").encode("x", template_arguments=given)


def test_whatever_a_processor_raises_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Phi-4's extractor of a recording shorter than its window: RuntimeError."""
    family = build_family("llava")

    def fail(*unused: object, **options: object) -> None:
        raise RuntimeError("maximum size for tensor is 20")

    monkeypatch.setattr(type(family.processor), "__call__", fail)
    with pytest.raises(InputError, match=r"LlavaProcessor does not take .* 1 image .* size for"):
        InputProcessor(family.processor, family.config).encode("What?", images=RED)


LOST = OSError(errno.EIO, "Input/output error")
FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory")  # as PyTorch says it on a CPU


class LostFile(io.BytesIO):
    """Opened before the disk was lost."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise LOST


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), FULL, LOST], ids=repr)
@pytest.mark.parametrize(
    ("owner", "name", "given"),
    [
        (Path, "read_bytes", {"images": __file__}),
        (Path, "stat", {"images": __file__}),
        (LostFile, "read", {"images": LostFile()}),
        (Image, "open", {"images": PNG}),
        (ImageFile.ImageFile, "load", {"images": PNG}),
        (ImageFile.ImageFile, "load", {"images": Image.open(io.BytesIO(PNG))}),
        (GifImagePlugin.GifImageFile, "seek", {"videos": GIF}),
        (Qwen2VLProcessor, "__call__", {"images": RED}),
    ],
)
def test_a_machine_that_fails_is_no_mistake_of_the_prompt_s(
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    owner: object,
    name: str,
    given: dict[str, object],
) -> None:
    family = build_family("qwen2_vl")

    def fail(*unused: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(type(error)) as caught:
        InputProcessor(family.processor, family.config).encode("What?", **given)  # type: ignore[arg-type]
    assert caught.value is error


def test_named_templates_are_chosen_by_name() -> None:
    tokenizer = build_tokenizer("gpt2").__class__(
        tokenizer_object=build_tokenizer("gpt2").backend_tokenizer
    )
    tokenizer.chat_template = {"short": "S{{ messages[0].content }}", "long": "L"}
    inputs = InputProcessor(tokenizer, LlamaConfig())
    assert inputs.encode("x", template_arguments={"chat_template": "short"}).text == "Sx"
    with pytest.raises(InputError, match=r"\['long', 'short'\]"):
        inputs.encode("x")


def test_limits_reach_the_images() -> None:
    family = build_family("llava")
    inputs = InputProcessor(
        family.processor, family.config, limits=InputLimits(max_image_pixels=10)
    )
    with pytest.raises(InputError, match="over the limit of 10"):
        inputs.encode("What?", images=np.zeros((4, 4, 3), np.uint8))
