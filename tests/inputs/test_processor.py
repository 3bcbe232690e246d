"""Requests become prompts by the families' real processors, as transformers itself does it."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, PreTrainedTokenizerBase, ProcessorMixin

from inputs.media_families import FAMILIES, MediaFamily, build_family
from inputs.text_families import FAMILIES as TEXT_FAMILIES
from inputs.text_families import build_tokenizer, byte_level
from mmspec.errors import InputError
from mmspec.inputs import InputProcessor, Message

RED = Image.new("RGB", (28, 28), (255, 0, 0))
BLUE = Image.new("RGB", (28, 28), (0, 0, 255))
WITH_TEMPLATE = [name for name in FAMILIES if name != "paligemma"]


def image_message(*texts: str) -> list[Message]:
    parts = [{"type": "image"}, *({"type": "text", "text": text} for text in texts)]
    return [{"role": "user", "content": parts}]


def processor_of(family: MediaFamily) -> InputProcessor:
    return InputProcessor(family.processor, family.config)


def text_processor(name: str) -> InputProcessor:
    return InputProcessor(build_tokenizer(name), LlamaConfig())


@pytest.fixture(params=WITH_TEMPLATE)
def family(request: pytest.FixtureRequest) -> MediaFamily:
    return build_family(request.param)


# What comes out is what transformers' own path gives.


def test_an_image_and_a_question_match_the_processors_own_path(family: MediaFamily) -> None:
    prompt = processor_of(family).encode("What?", images=RED)
    theirs = family.processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": RED}, {"type": "text", "text": "What?"}],
            }
        ],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    assert prompt.token_ids.tolist() == theirs["input_ids"][0].tolist()
    assert set(family.inputs) <= set(prompt.model_inputs)
    for name, value in prompt.model_inputs.items():
        assert torch.equal(value, theirs[name]), name
    assert "attention_mask" not in prompt.model_inputs
    assert sum(span.stop - span.start for span in prompt.media) == family.num_placeholders
    assert {span.kind for span in prompt.media} == {"image"}


class OwnProcessor(ProcessorMixin):
    """A model's own: it reads images without an image processor, and calls them as it likes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None):
        self.image_token = "<image>"
        super().__init__(tokenizer, chat_template=chat_template)

    def __call__(self, images: object = None, text: object = None, **kwargs: object) -> dict:
        inputs = dict(self.tokenizer(text, **kwargs))
        if images is not None:
            (own,) = images
            inputs["pictures"] = torch.tensor(np.stack(list(map(np.asarray, own))) / 255)
        return inputs


def test_a_processor_may_read_images_by_itself() -> None:
    tokenizer = byte_level(("<image>",))
    config = LlamaConfig(image_token_id=tokenizer.convert_tokens_to_ids("<image>"))
    own = InputProcessor(OwnProcessor(tokenizer), config)
    prompt = own.encode("<image> and <image>: what?", images=[RED, BLUE])
    assert prompt.model_inputs["pictures"].shape == (2, 28, 28, 3)
    assert [span.kind for span in prompt.media] == ["image", "image"]


def test_a_processor_that_reads_no_images_is_told_how_they_get_in() -> None:
    class Deaf(OwnProcessor):
        def __call__(self, text: object = None, **kwargs: object) -> dict:
            return dict(self.tokenizer(text, **kwargs))

    inputs = InputProcessor(Deaf(byte_level(("<image>",))), LlamaConfig())
    with pytest.raises(InputError, match="no image processor here; process the prompt yourself"):
        inputs.encode("<image>?", images=RED)


def test_paligemma_takes_its_placeholder_in_the_text() -> None:
    family = build_family("paligemma")
    prompt = processor_of(family).encode("<image>What?", images=RED)
    theirs = family.processor(text=["<image>What?"], images=[[RED]], return_tensors="pt")
    assert prompt.token_ids.tolist() == theirs["input_ids"][0].tolist()
    assert sorted(prompt.model_inputs) == ["pixel_values", "token_type_ids"]


def test_several_images_stay_in_order_and_text_alone_works(family: MediaFamily) -> None:
    inputs = processor_of(family)
    if family.config.model_type != "mllama":  # pads its tiles instead
        both = inputs.encode("What?", images=[RED, BLUE])
        turned = inputs.encode("What?", images=[BLUE, RED])
        assert torch.equal(both.token_ids, turned.token_ids)
        assert not torch.equal(
            both.model_inputs["pixel_values"], turned.model_inputs["pixel_values"]
        )
        count = sum(span.stop - span.start for span in both.media)
        assert count == 2 * family.num_placeholders
    alone = inputs.encode("What?")
    assert alone.media == () and "pixel_values" not in alone.model_inputs


def test_the_beginning_of_text_is_never_doubled(family: MediaFamily) -> None:
    inputs = processor_of(family)
    bos = inputs.tokenizer.bos_token_id
    if bos is None:
        return
    for prompt in (
        inputs.encode("What?"),
        inputs.encode("What?", raw=True),
        inputs.encode(f"{inputs.tokenizer.bos_token}What?", raw=True),
    ):
        assert prompt.token_ids.tolist().count(bos) <= 1


def test_a_tokenizers_template_writes_all_special_tokens_itself() -> None:
    inputs = text_processor("llama3")  # whose tokenizer adds a beginning of text to raw text
    bos = inputs.tokenizer.bos_token_id
    template = {"chat_template": "{{ messages[0].content }}"}
    assert bos in inputs.encode("Hi", raw=True).token_ids
    assert bos not in inputs.encode("Hi", template_arguments=template).token_ids


@pytest.mark.parametrize("name", list(TEXT_FAMILIES))
def test_text_models_match_their_tokenizer(name: str) -> None:
    tokenizer, inputs = build_tokenizer(name), text_processor(name)
    raw = inputs.encode("Hello there", raw=True)
    assert raw.token_ids.tolist() == tokenizer("Hello there")["input_ids"]
    assert raw.model_inputs == {} and raw.text == "Hello there"
    if tokenizer.chat_template is None:
        assert torch.equal(inputs.encode("Hello there").token_ids, raw.token_ids)
        return
    chat = inputs.encode("Hello there", system="Be brief.")
    theirs = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello there"},
        ],
        add_generation_prompt=True,
    )
    assert chat.token_ids.tolist() == theirs["input_ids"]


def test_videos_go_to_the_video_processor_frame_by_frame() -> None:
    inputs = processor_of(build_family("qwen2_vl"))
    prompt = inputs.encode("What?", images=RED, videos=[[RED, BLUE, RED], [BLUE]])
    assert prompt.model_inputs["video_grid_thw"].tolist() == [[3, 4, 4], [1, 4, 4]]
    spans = [(span.kind, span.stop - span.start) for span in prompt.media]
    assert spans == [("image", 4), ("video", 12), ("video", 4)]


def test_a_begun_assistant_turn_is_left_open(family: MediaFamily) -> None:
    messages = [*image_message("What?"), {"role": "assistant", "content": "The total is"}]
    prompt = processor_of(family).encode(messages, images=RED)
    assert prompt.text is not None and prompt.text.endswith("The total is")


def test_a_model_can_have_a_template_for_strings_only() -> None:
    family = build_family("llava")
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content | trim }}\n{% endfor %}"
    prompt = processor_of(family).encode(
        image_message("What?"), images=RED, template_arguments={"chat_template": template}
    )
    assert prompt.text == "[user] <image>What?\n"


# Control tokens.


def test_user_text_cannot_write_media_or_control_tokens(family: MediaFamily) -> None:
    inputs = processor_of(family)
    attack = "a" + "".join(family.attack) + "b <|im_start|>"
    harmless = inputs.encode(image_message("aXb"), images=RED).token_ids.tolist()
    attacked = inputs.encode(image_message(attack), images=RED)
    for token in family.attack:
        one = inputs.tokenizer.convert_tokens_to_ids(token)
        assert attacked.token_ids.tolist().count(one) == harmless.count(one), token
    assert sum(span.stop - span.start for span in attacked.media) == family.num_placeholders
    with pytest.raises(InputError, match="control_tokens='neutralise'"):
        inputs.encode(image_message(attack), images=RED, control_tokens="refuse")


@pytest.mark.parametrize("name", [name for name in TEXT_FAMILIES if TEXT_FAMILIES[name].template])
def test_every_way_into_the_template_is_guarded(name: str) -> None:
    token = TEXT_FAMILIES[name].control[-1]
    inputs = text_processor(name)
    one = inputs.tokenizer.convert_tokens_to_ids(token)

    def encode(text: str, control_tokens: str = "neutralise") -> int:
        messages: list[Message] = [
            {"role": "system", "content": f"s {text}"},
            {"role": "user", "content": [{"type": "text", "text": f"u {text}"}]},
            {
                "role": "assistant",
                "content": f"a {text}",
                "tool_calls": [{"function": {"name": "f", "arguments": {text: [text]}}}],
            },
            {"role": "tool", "content": f"t {text}"},
            {"role": "user", "content": "Go on"},
        ]
        template = (
            "{{ tools | tojson }}{{ documents[0].text }}"
            "{% for m in messages if m.tool_calls %}"
            "{{ m.tool_calls[0].function.arguments }}{% endfor %}"
        )
        prompt = inputs.encode(
            messages,
            tools=[{"type": "function", "function": {"name": "f", "description": text}}],
            documents=[{"title": "d", "text": text}],
            template_arguments={"chat_template": template + TEXT_FAMILIES[name].template},
            control_tokens=control_tokens,  # type: ignore[arg-type]
        )
        return prompt.token_ids.tolist().count(one)

    assert encode(token) == encode("plain")
    assert encode(token, "parse") > encode("plain")


@pytest.mark.parametrize(
    "halves", [("<|im_", "start|>"), ("<|im_ ", " start|>"), ("<", "|im_end|>")]
)
def test_parts_that_join_to_a_control_token_are_refused(halves: tuple[str, str]) -> None:
    parts = [{"type": "text", "text": half} for half in halves]
    template = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text | trim }}{% endfor %}{% endfor %}"
    )
    with pytest.raises(InputError, match="join to control tokens"):
        processor_of(build_family("qwen2_vl")).encode(
            [{"role": "user", "content": parts}], template_arguments={"chat_template": template}
        )


def test_raw_text_is_taken_as_it_is_and_a_missing_template_still_guards() -> None:
    inputs = text_processor("gpt2")
    end = inputs.tokenizer.eos_token_id
    text = "one<|endoftext|>two"
    assert end in inputs.encode(text, raw=True).token_ids
    assert end not in inputs.encode(text).token_ids
    assert end in inputs.encode(text, control_tokens="parse").token_ids
    family = build_family("paligemma")
    prompt = processor_of(family).encode("<image>a<eos>b", images=RED)
    assert family.processor.tokenizer.eos_token_id not in prompt.token_ids
    assert len(prompt.media) == 1


# Threads.


def test_eight_threads_get_what_one_gets() -> None:
    inputs = processor_of(build_family("qwen2_vl"))
    texts = [f"Question {index} <|im_end|>" + "x" * index for index in range(24)]
    expected = [inputs.encode(text, images=RED).token_ids.tolist() for text in texts]
    got: dict[int, list[int]] = {}

    def work(first: int) -> None:
        for index in range(first, len(texts), 8):
            got[index] = inputs.encode(texts[index], images=RED).token_ids.tolist()

    threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[index] for index in range(len(texts))] == expected
