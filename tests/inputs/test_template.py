"""Each role's content reaches the template in the form that the template reads."""

import pytest
from PIL import Image
from transformers import LlamaConfig

from inputs.media_families import build_family
from inputs.text_families import build_tokenizer
from mmspec.errors import InputError
from mmspec.inputs import InputProcessor, Message, build_conversation
from mmspec.inputs.template import ChatTemplate

PARTS = (
    "{% for m in messages %}{{ m.role }}:"
    "{% for p in m.content %}{{ p.text }}{% endfor %};{% endfor %}"
)
STRING = "{% for m in messages %}{{ m.role }}:{{ m.content | trim }};{% endfor %}"
TOOLS = (
    "{% for m in messages %}{% if m.tool_calls %}call;{% else %}{{ m.role }}:"
    "{{ m.content | string | trim }};{% endif %}{% endfor %}"
)
CHAT: list[Message] = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": [{"type": "text", "text": "U"}, {"type": "text", "text": "V"}]},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "W"},
]


@pytest.mark.parametrize("source", [PARTS, STRING], ids=["parts", "string"])
@pytest.mark.parametrize("owner", ["tokenizer", "processor"])
def test_parts_and_strings_arrive_in_the_form_that_is_read(source: str, owner: str) -> None:
    owners = {"tokenizer": build_tokenizer("qwen"), "processor": build_family("llava").processor}
    template = ChatTemplate(owners[owner], source, placeholders={})
    rendered = template.render(build_conversation(CHAT))
    assert rendered == "system:S;user:UV;assistant:A;user:W;"


def test_one_template_may_read_both_forms() -> None:
    """As Llama 3.2 Vision's: the system as a string, the user in parts."""
    inputs = build_family("mllama")
    rendered = ChatTemplate(
        inputs.processor, inputs.processor.chat_template, placeholders={}
    ).render(build_conversation("U", system="Be brief."))
    assert "system<|end_header_id|>\n\nBe brief.<|eot_id|>" in rendered
    assert "user<|end_header_id|>\n\nU<|eot_id|>" in rendered


def test_tool_results_are_strings_where_parts_would_be_printed() -> None:
    chat: list[Message] = [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "42"},
    ]
    template = ChatTemplate(build_family("llava").processor, TOOLS, placeholders={})
    assert template.render(build_conversation(chat)) == "user:U;call;tool:42;"


def test_a_template_that_takes_turns_in_their_order_alone_is_asked_in_it() -> None:
    """As Mistral's: user and assistant alternate, and a tool answers a call."""
    source = (
        "{% for m in messages %}{% set before = messages[loop.index0 - 1] if loop.index0 else {} %}"
        "{% if m.role == 'tool' and not before.tool_calls %}{{ raise_exception('no call') }}"
        "{% elif m.role == before.role %}{{ raise_exception('turns alternate') }}{% endif %}"
        "{{ m.role }}:{% for p in m.content %}{{ p.text }}{% endfor %};{% endfor %}"
    )
    call = {"function": {"name": "f", "arguments": {}}}
    chat: list[Message] = [
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A", "tool_calls": [call]},
        {"role": "tool", "content": "T"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "V"},
    ]
    template = ChatTemplate(build_tokenizer("qwen"), source, placeholders={})
    rendered = template.render(build_conversation(chat))
    assert rendered == "user:U;assistant:A;tool:T;assistant:B;user:V;"


def test_a_template_that_refuses_all_that_is_tried_gets_what_its_owner_mostly_reads() -> None:
    """Parts where it is a processor's, but for tools' answers, which are strings."""
    source = "{% if messages | length != 4 %}{{ raise_exception('four turns') }}{% endif %}" + (
        "{% for m in messages %}{{ 'string' if m.content is string else 'parts' }};{% endfor %}"
    )
    chat: list[Message] = [{"role": role, "content": "x"} for role in ("user", "tool") * 2]
    for owner, expected in (
        (build_family("llava").processor, "parts;string;parts;string;"),
        (build_tokenizer("qwen"), "string;string;string;string;"),
    ):
        assert ChatTemplate(owner, source, placeholders={}).render(build_conversation(chat)) == (
            expected
        )


def test_a_processors_own_template_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolVLM takes another where there are videos, but not in place of the caller's."""
    owner = build_family("llava").processor
    named: list[object] = []

    def record(self: object, messages: object, *, chat_template: object, **rest: object) -> str:
        named.append(chat_template)
        return "text"

    monkeypatch.setattr(type(owner), "apply_chat_template", record)
    for source in (owner.chat_template, STRING):
        ChatTemplate(owner, source, placeholders={}).render(build_conversation("U"))
    assert set(named) == {None, STRING}


def test_a_template_of_strings_gets_placeholders_or_says_that_it_has_none() -> None:
    conversation = build_conversation("U", images="a.png")
    owner = build_family("llava").processor
    written = ChatTemplate(owner, STRING, placeholders={"image": "<image>"}).render(conversation)
    assert written == "user:<image>U;"
    with pytest.raises(InputError, match="names no placeholder for a image"):
        ChatTemplate(owner, STRING, placeholders={}).render(conversation)


def test_tools_documents_and_arguments_reach_the_template() -> None:
    def total(prices: list[float]) -> float:
        """Adds prices.

        Args:
            prices: what to add
        """
        return sum(prices)

    source = "{{ tools[0].function.name }} {{ documents[0].text }} {{ mood }} " + STRING
    rendered = ChatTemplate(build_tokenizer("qwen"), source, placeholders={}).render(
        build_conversation("U"),
        tools=[total],
        documents=[{"text": "D"}],
        arguments={"mood": "calm", "chat_template": "ignored"},
    )
    assert rendered == "total D calm user:U;"


def test_an_image_that_the_template_drops_is_an_error() -> None:
    family = build_family("llava")
    with pytest.raises(InputError, match="got 0 image placeholders"):
        InputProcessor(family.processor, family.config).encode(
            "U", images=Image.new("RGB", (28, 28)), template_arguments={"chat_template": PARTS}
        )


@pytest.mark.parametrize(
    ("prompt", "is_told"),
    [
        (" <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", True),
        ("What does <|im_start|> mean?", False),
        ([{"role": "user", "content": "<|im_start|>user"}], False),
    ],
)
def test_a_text_that_a_template_has_written_is_told_once(
    prompt: str | list[Message], is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes through the template again: the user meant raw=True."""
    tokenizer = build_tokenizer("qwen")
    tokenizer.chat_template = STRING
    inputs = InputProcessor(tokenizer, LlamaConfig())
    if isinstance(prompt, str):
        inputs.encode(prompt, raw=True)
    assert not caplog.records
    for _ in range(2):
        inputs.encode(prompt)
    assert [record.message.count("raw=True") for record in caplog.records] == [1] * is_told
