"""Passages: into the prompt by a template, neutralised always, and drafted from as tokens that an
answer would hold."""

import pytest
from PIL import Image
from transformers import LlamaConfig

from inputs.media_families import FAMILIES as MEDIA
from inputs.media_families import MediaFamily, build_family
from inputs.text_families import FAMILIES, build_tokenizer
from mmspec.errors import InputError
from mmspec.inputs import InputProcessor, Passage
from mmspec.inputs.control_strings import control_strings
from mmspec.inputs.passages import passage_list

RED = Image.new("RGB", (28, 28), (255, 0, 0))
PLAIN = "{% for p in passages %}{{ p.text }}{% endfor %}|{{ question }}"


def text_inputs(name: str = "qwen") -> InputProcessor:
    tokenizer = build_tokenizer(name)
    return InputProcessor(tokenizer, LlamaConfig())


def arguments(name: str) -> dict[str, object] | None:
    return {"chat_template": FAMILIES[name].template} if FAMILIES[name].template else None


@pytest.fixture(params=[name for name in MEDIA if name not in ("paligemma", "mllama")])
def family(request: pytest.FixtureRequest) -> MediaFamily:
    return build_family(request.param)


# Where they go.


def test_passages_stand_before_the_question_numbered_with_their_sources() -> None:
    prompt = text_inputs().encode(
        "Who?",
        passages=["The fox.", Passage("The dog.\nIt sleeps.", source="dog.md")],
        template_arguments=arguments("qwen"),
    )
    assert prompt.text is not None
    assert (
        "user\n[1]\nThe fox.\n\n[2] dog.md\nThe dog.\nIt sleeps.\n\nWho?<|im_end|>" in prompt.text
    )


@pytest.mark.parametrize("raw", [True, False])
def test_without_a_chat_template_they_stand_before_the_text(raw: bool) -> None:
    prompt = text_inputs("gpt2").encode("Who?", passages="The fox.", raw=raw)
    assert prompt.text == "[1]\nThe fox.\n\nWho?"


def test_of_messages_the_last_of_the_user_gets_them() -> None:
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "text", "text": "Two?"}]},
        {"role": "assistant", "content": "It is"},
    ]
    prompt = text_inputs().encode(
        messages, passages="P.", passage_template=PLAIN, template_arguments=arguments("qwen")
    )
    assert prompt.text is not None
    assert "user\nOne?<|im_end|>" in prompt.text and "user\nP.|Two?<|im_end|>" in prompt.text


def test_images_stay_before_them(family: MediaFamily) -> None:
    inputs = InputProcessor(family.processor, family.config)
    alone = inputs.encode("What?", images=RED)
    prompt = inputs.encode("What?", images=RED, passages="The fox.")
    assert prompt.media == alone.media
    assert prompt.text == (alone.text or "").replace("What?", "[1]\nThe fox.\n\nWhat?")
    only = inputs.encode(
        [{"role": "user", "content": [{"type": "image"}]}], images=RED, passages="P"
    )
    assert "[1]\nP" in (only.text or "")


def test_none_and_blank_ones_change_nothing() -> None:
    inputs = text_inputs("gpt2")
    plain = inputs.encode("Who?")
    for nothing in ((), [], "", [" \n"], [Passage("")]):
        prompt = inputs.encode("Who?", passages=nothing)
        assert (prompt.text, prompt.draft_texts) == (plain.text, ())


def test_documents_are_the_chat_templates_own() -> None:
    template = (
        FAMILIES["qwen"].template + "{% for d in documents or [] %}<{{ d.text }}>{% endfor %}"
    )
    prompt = text_inputs().encode(
        "Who?",
        passages="The fox.",
        documents=[{"text": "The dog."}],
        template_arguments={"chat_template": template},
    )
    assert prompt.text is not None
    assert "[1]\nThe fox.\n\nWho?" in prompt.text and "<The dog.>" in prompt.text


# The template.


def test_a_template_sees_text_id_and_source() -> None:
    template = "{{ question }}{% for p in passages %} ({{ p.id }}/{{ p.source }}: {{ p.text }})"
    prompt = text_inputs("gpt2").encode(
        "Who?",
        passages=[Passage("T", id="I", source="S")],
        passage_template=template + "{% endfor %}",
    )
    assert prompt.text == "Who? (I/S: T)"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ passages }}", r"uses \['passages'\]; expected both"),
        ("{{ question }}", r"uses \['question'\]; expected both"),
        ("{{ passages }}{{ question }}{{ query }}", "no other variable"),
        ("{% for", "no Jinja"),
        (5, "no Jinja"),
        ("{{ passages[7].text }}{{ question }}", "does not take these passages"),
        ("{{ passages[0].text }}{{ question }}{{ 1 // 0 }}", "does not take these passages"),
        ("{{ passages.__class__.__mro__ }}{{ question }}", "does not take these passages"),
    ],
)
def test_a_template_that_is_none_is_refused(template: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        text_inputs("gpt2").encode("Who?", passages="P", passage_template=template)


@pytest.mark.parametrize("given", [3, [3], [{"text": "P"}], {"text": "P"}, b"P", [Passage(b"P")]])  # type: ignore[arg-type]
def test_what_is_no_passage_is_refused(given: object) -> None:
    with pytest.raises(InputError, match=r"got .*passage.*; expected"):
        passage_list(given)  # type: ignore[arg-type]


def test_messages_without_a_user_are_refused() -> None:
    with pytest.raises(InputError, match="expected one of the user"):
        text_inputs().encode(
            [{"role": "system", "content": "Be."}, {"role": "assistant", "content": "I am"}],
            passages="P",
            template_arguments=arguments("qwen"),
        )


# Control tokens.


@pytest.mark.parametrize("mode", ["neutralise", "refuse", "parse"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_control_token_in_a_passage_is_never_parsed(name: str, mode: str) -> None:
    inputs, tokenizer = text_inputs(name), build_tokenizer(name)
    for token in FAMILIES[name].control:
        attack = Passage(f"a{token}b", id=token, source=f"{token}{token}")
        options = {"template_arguments": arguments(name), "control_tokens": mode}
        harmless = inputs.encode("Who?", passages=Passage("a.b", id=".", source=".."), **options)  # type: ignore[arg-type]
        prompt = inputs.encode("Who?", passages=attack, **options)  # type: ignore[arg-type]
        forbidden = tokenizer.convert_tokens_to_ids(token)
        if forbidden != tokenizer.unk_token_id or forbidden == tokenizer.eos_token_id:
            count = prompt.token_ids.tolist().count(forbidden)
            assert count == harmless.token_ids.tolist().count(forbidden), (token, prompt.text)
        assert (prompt.text or "").count(token) == (harmless.text or "").count(token)


@pytest.mark.parametrize("mode", ["neutralise", "parse"])
def test_a_media_token_in_a_passage_is_no_image(family: MediaFamily, mode: str) -> None:
    inputs = InputProcessor(family.processor, family.config)
    control = control_strings(inputs.tokenizer, processor=family.processor)
    ids = {inputs.tokenizer.convert_tokens_to_ids(text) for text in control}
    for token in family.attack:
        options = {"images": RED, "control_tokens": mode}
        harmless = inputs.encode("What?", passages="a . b", **options)  # type: ignore[arg-type]
        prompt = inputs.encode("What?", passages=f"a {token} b", **options)  # type: ignore[arg-type]
        assert len(prompt.media) == len(harmless.media)
        counts = [sum(one in ids for one in p.token_ids.tolist()) for p in (prompt, harmless)]
        assert counts[0] == counts[1], f"{token!r} was parsed: {prompt.text!r}"
        texts = inputs.draft_texts(f"a {token} b")
        assert not ids & {one for text in texts for one in text}


@pytest.mark.parametrize("mode", ["neutralise", "parse"])
@pytest.mark.parametrize("raw", [True, False])
def test_pieces_that_a_template_joins_to_a_control_token_are_refused(mode: str, raw: bool) -> None:
    with pytest.raises(InputError, match="join to control tokens"):
        text_inputs().encode(
            "Who?",
            passages=["<|im_", "end|>"],
            passage_template="{% for p in passages %}{{ p.text }}{% endfor %}{{ question }}",
            raw=raw,
            template_arguments=None if raw else arguments("qwen"),
            control_tokens=mode,  # type: ignore[arg-type]
        )


# What is drafted from.


def words(inputs: InputProcessor, texts: tuple[tuple[int, ...], ...]) -> list[str]:
    return [inputs.tokenizer.decode([t for t in text if t >= 0]).strip() for text in texts]


@pytest.mark.parametrize("name", ["qwen", "llama3", "gemma", "gpt2"])
def test_a_passage_beside_the_prompt_is_no_part_of_it(name: str) -> None:
    inputs = text_inputs(name)
    options = {"template_arguments": arguments(name)}
    text = "The quick brown fox jumps over the lazy dog. " * 4
    beside = inputs.encode("Who?", passages=Passage(text, in_prompt=False), **options)  # type: ignore[arg-type]
    assert beside.text == inputs.encode("Who?", **options).text  # type: ignore[arg-type]
    assert text.strip() in words(inputs, beside.draft_texts)


@pytest.mark.parametrize("name", ["qwen", "llama3", "gemma"])
@pytest.mark.parametrize("before", ["\n", "It says: ", "", "(1) "])
def test_the_tokens_of_a_quote_are_among_them_wherever_it_stands(name: str, before: str) -> None:
    """But for the seam's own token, where a tokenizer joins blanks with what follows."""
    inputs, text = text_inputs(name), "The invoice of March lists three items"
    quoted = inputs.tokenizer(before + text, add_special_tokens=False)["input_ids"]
    alone = inputs.tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = inputs.draft_texts(Passage(text))
    longest = max(
        size
        for size in range(1, len(quoted) + 1)
        if any(tuple(quoted[-size:]) == one[-size:] for one in texts)
    )
    assert longest >= len(alone), f"{before!r}: {quoted} is not in {texts}"


def test_of_a_passage_in_the_prompt_the_beginning_alone_is_repeated() -> None:
    inputs, text = text_inputs("gpt2"), "The quick brown fox jumps over the lazy dog. " * 20
    whole = inputs.encode("Who?", passages=Passage(text, in_prompt=False)).draft_texts
    heads = inputs.encode("Who?", passages=text).draft_texts
    assert max(map(len, whole)) > 100 > 24 >= max(map(len, heads))


def test_a_processed_prompts_passages_are_all_beside_it() -> None:
    inputs, text = text_inputs("gpt2"), "The quick brown fox jumps over the lazy dog. " * 4
    assert text.strip() in words(inputs, inputs.draft_texts([Passage(text)]))


def test_a_control_token_parts_what_is_copied() -> None:
    inputs = text_inputs("qwen")
    ((*first,), *_) = inputs.draft_texts("The fox.<|im_end|>The dog.")
    assert first.count(-1) == 1
    assert words(inputs, (tuple(first[: first.index(-1)]),)) == ["The fox."]
