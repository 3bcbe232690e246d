"""JSON by a schema: always of the form, and the same text with and without drafts."""

import copy
import json
from importlib.util import find_spec
from typing import Any, Literal

import pytest
import torch
from draft_models import letters
from families import FAMILIES

import mmspec
from mmspec.errors import InputError, MissingExtraError
from mmspec.integrations.guided import GrammarProcessor, JsonGuide
from mmspec.training.tiny.build import build_model, build_processor

needs_extra = pytest.mark.skipif(not find_spec("llguidance"), reason="needs the extra 'guided'")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Anna", "Bob", "Carl"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "is_sold": {"type": "boolean"},
    },
    "required": ["name", "count", "is_sold"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> mmspec.Engine:
    """Random weights: what is of the form is so by the guide alone."""
    return mmspec.load(
        build_model("nano").double().eval(),
        build_processor(),
        overrides={"decode.controller": "fixed"},
    )


@pytest.fixture(scope="module")
def guide(engine: mmspec.Engine) -> JsonGuide:
    return JsonGuide(engine)


def check(text: str) -> dict[str, Any]:
    said = json.loads(text)
    assert set(said) == set(SCHEMA["required"])  # type: ignore[call-overload]
    assert said["name"] in ("Anna", "Bob", "Carl") and 0 <= said["count"] <= 99
    assert isinstance(said["is_sold"], bool)
    return said


@needs_extra
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_no_token_and_all_is_of_the_form(
    engine: mmspec.Engine, guide: JsonGuide, temperature: float
) -> None:
    draft = '{"name": "Anna", "count": 3, "is_sold": false}'
    for seed in range(1 if temperature == 0 else 2):
        options = {"max_new_tokens": 500, "seed": seed, "temperature": temperature, "reuse": False}
        plain, helped = (
            engine.generate(
                "What was sold?", logits_processors=[guide.matching(SCHEMA)], **options, **more
            )
            for more in ({"speculate": False}, {"prediction": draft})
        )
        assert helped.tokens == plain.tokens
        assert plain.finish_reason == "eos"
        check(plain.text)
        assert helped.stats.steps < plain.stats.steps


@needs_extra
def test_a_pydantic_model_is_a_form_with_its_own_keys_alone(
    engine: mmspec.Engine, guide: JsonGuide
) -> None:
    pydantic = pytest.importorskip("pydantic")
    form = pydantic.create_model("Sale", count=(Literal[1, 2], ...), is_sold=(bool, ...))
    said = engine.generate(
        "What?", logits_processors=[guide.matching(form)], max_new_tokens=300, seed=1
    )
    assert set(vars(form.model_validate_json(said.text))) == set(json.loads(said.text))


@needs_extra
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_the_grammar_leaves_is_drafted_by_itself(
    engine: mmspec.Engine, guide: JsonGuide, temperature: float
) -> None:
    options = {"max_new_tokens": 300, "seed": 1, "temperature": temperature, "reuse": False}
    plain, helped = (
        engine.generate(
            "What was sold?", logits_processors=[guide.matching(SCHEMA)], speculate=s, **options
        )
        for s in (False, True)
    )
    assert helped.tokens == plain.tokens and check(helped.text)
    count = helped.stats.by_drafter["forced"]
    assert count.accepted > 20
    assert helped.stats.steps <= plain.stats.steps - count.accepted


@needs_extra
@pytest.mark.parametrize(
    ("said", "comes"),
    [
        ('{"na', 'me": "'),
        ('{"name":"C', 'arl","count":'),
        ('{"name": "C', 'arl", "count":'),
        ('{\n  "name": "C', 'arl",\n  "count":'),
        ('{"name": "Bob", "count": 7', ""),  # 7, or 70 to 79
        ('{"name": "Bob", "count": 77', ', "is_sold":'),
        ('{\n "name": "Bob",\n "count": 77,\n "is_sold": f', "alse\n}"),
        ('{"x', ""),  # it has left the grammar: nothing is known
    ],
)
def test_it_knows_keys_and_words_and_guesses_the_blanks(
    engine: mmspec.Engine, guide: JsonGuide, said: str, comes: str
) -> None:
    prompt, tokenizer = [1, 2, 3], engine.tokenizer
    tokens = tokenizer(said, add_special_tokens=False).input_ids
    one = guide.matching(SCHEMA)
    assert not one.forced_tokens([*prompt, *tokens]), "it does not know where the answer begins"
    scores = torch.zeros(1, engine.target.vocab_size)
    one(torch.tensor([prompt]), scores)
    ahead = one.forced_tokens([*prompt, *tokens])
    text = tokenizer.decode(ahead, skip_special_tokens=True)
    assert text == comes
    if comes.endswith("}"):
        assert ahead[-1] == tokenizer.eos_token_id, "nothing but the end may come"


@needs_extra
@pytest.mark.parametrize("own", [{}, {"whitespace_flexible": True}])
def test_blanks_have_an_end_whatever_the_schema_says(
    engine: mmspec.Engine, guide: JsonGuide, own: dict[str, object]
) -> None:
    assert engine.tokenizer is not None
    one = guide.matching({**SCHEMA, "x-guidance": own}).for_request(0)
    (blank,) = engine.tokenizer(" ", add_special_tokens=False).input_ids
    (brace,) = engine.tokenizer("{", add_special_tokens=False).input_ids
    scores = torch.zeros(1, engine.target.vocab_size)
    for number, is_allowed in ((19, True), (20, False)):
        judged = one(torch.tensor([[brace, *[blank] * number]]), scores)
        assert bool(judged[0, blank] == 0) == is_allowed


@needs_extra
def test_looking_ahead_does_not_advance_it(engine: mmspec.Engine, guide: JsonGuide) -> None:
    tokens = engine.tokenizer('{"name": "Anna", "co', add_special_tokens=False).input_ids
    scores = torch.zeros(1, engine.target.vocab_size)
    looks, other = guide.matching(SCHEMA), guide.matching(SCHEMA)
    for length in range(len(tokens) + 1):
        ids = torch.tensor([[1, 2, *tokens[:length]]])
        assert torch.equal(looks(ids, scores), other(ids, scores))
        for asked in (ids[0].tolist(), [1, 2, *tokens[: length + 2]], [1, 2, *tokens[:3]], [1, 2]):
            looks.forced_tokens(asked)


@needs_extra
@pytest.mark.parametrize("choosing", ["host", "device"])
def test_it_is_so_on_a_device_and_with_samples(engine: mmspec.Engine, choosing: str) -> None:
    other = mmspec.load(
        engine.target.model,
        build_processor(),
        overrides={"decode.controller": "fixed", "decode.choosing": choosing},
    )
    guide = JsonGuide(other)
    options = {"max_new_tokens": 300, "seed": 3, "temperature": 1.0, "n": 2}
    result = other.generate("What was sold?", logits_processors=[guide.matching(SCHEMA)], **options)
    texts = [sample.text for sample in result.samples]
    assert len(set(texts)) == 2 and all(map(check, texts))
    plain = engine.generate(
        "What was sold?",
        logits_processors=[JsonGuide(engine).matching(SCHEMA)],
        speculate=False,
        **options,
    )
    assert [sample.text for sample in plain.samples] == texts


@needs_extra
def test_it_follows_any_path_and_goes_back(guide: JsonGuide, engine: mmspec.Engine) -> None:
    letters = engine.tokenizer('{"name"', add_special_tokens=False).input_ids
    other = engine.tokenizer("x", add_special_tokens=False).input_ids[0]
    one = guide.matching(SCHEMA)
    vocab_size = engine.target.vocab_size
    scores = torch.zeros(1, vocab_size)

    def allowed(processor: GrammarProcessor, tokens: list[int]) -> list[int]:
        judged = processor(torch.tensor([[1, 2, *tokens]]), scores)
        return (judged[0] > -torch.inf).nonzero().squeeze(-1).tolist()

    fresh = {}
    for length in range(len(letters) + 1):
        processor = guide.matching(SCHEMA)
        allowed(processor, [])
        fresh[length] = allowed(processor, letters[:length])
        assert 0 < len(fresh[length]) < vocab_size
    assert allowed(one, []) == fresh[0]
    for length in (3, 1, 7, 0, 5, 6, 2):
        assert allowed(one, letters[:length]) == fresh[length]
        assert len(allowed(one, [*letters[:length], other])) == vocab_size, "not judged"
    together = one(torch.tensor([[1, 2, *letters[:2]], [1, 2, other, other]]), scores.expand(2, -1))
    assert (together[0] > -torch.inf).sum() == len(fresh[2]) and (together[1] == 0).all()
    assert allowed(copy.deepcopy(one), []) == fresh[0]


@needs_extra
def test_one_is_enough_for_a_batch_for_calls_and_for_a_chat(
    engine: mmspec.Engine, guide: JsonGuide
) -> None:
    questions = ["What was sold?", "And what else was sold, say, yesterday?", "Who?"]
    options = {"max_new_tokens": 400, "temperature": 1.0, "seed": 5, "reuse": False}

    def alone(question: str) -> tuple[int, ...]:
        own = [guide.matching(SCHEMA)]
        return engine.generate(question, logits_processors=own, **options).tokens

    expected = [alone(question) for question in questions]
    shared = [guide.matching(SCHEMA)]
    together = engine.generate(questions, logits_processors=shared, **options)
    assert [one.tokens for one in together] == expected
    after = [engine.generate(q, logits_processors=shared, **options) for q in questions]
    assert [one.tokens for one in after] == expected
    chat = engine.chat(logits_processors=shared, **options)
    for question in questions[:2]:
        check(chat.send(question).text)


@needs_extra
def test_a_schema_is_compiled_where_it_is_read(
    engine: mmspec.Engine, guide: JsonGuide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large ones take seconds, in which a decode loop would keep all waiting."""
    import llguidance

    processor = guide.matching(SCHEMA)
    monkeypatch.setattr(llguidance, "LLMatcher", None)
    said = engine.generate(["a", "b"], logits_processors=[processor], max_new_tokens=200, n=2)
    for result in said:
        for sample in result.samples:
            check(sample.text)


@needs_extra
def test_a_schema_that_cannot_be_followed_is_told(guide: JsonGuide) -> None:
    for wrong in ({"type": "kingdom"}, {"type": "object", "if": {}, "then": False}, {"a": object}):
        with pytest.raises(InputError, match="JSON schema"):
            guide.matching(wrong)


def test_without_the_extra_it_is_named(
    engine: mmspec.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"mmspec\[guided\]"):
        JsonGuide(engine).matching()


@needs_extra
def test_a_tokenizer_that_llguidance_cannot_read_is_told_so() -> None:
    engine = mmspec.load(FAMILIES["llama"].build(torch.float64), letters())
    with pytest.raises(InputError, match=r"needs a tokenizer of bytes.*decoder"):
        JsonGuide(engine).matching(SCHEMA)
