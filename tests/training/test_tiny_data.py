"""The bundled model's data and its training forward: laws that the training relies on."""

import json
from random import Random

import pytest
import torch

from mmspec.training.tiny import build, curriculum, losses
from mmspec.training.tiny.batch import IGNORED, collate, pixel_tensor, prompt_ids
from mmspec.training.tiny.data import NOWHERE, TASKS, Sample, passage, quote, receipt, scan, span
from mmspec.training.tiny.evaluate import edit_distance, score
from mmspec.training.tiny.forward import forward
from mmspec.training.tiny.page import COLOURS, GRID, SHAPES
from mmspec.training.tiny.words import Words, is_held_out


def samples(task: str, count: int = 20, held_out: bool = False) -> list[Sample]:
    rng = Random(f"test/{task}")
    return [TASKS[task](rng, held_out=held_out) for _ in range(count)]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build.build_model("nano").eval()


@pytest.fixture(scope="module")
def processor() -> object:
    return build.build_processor()


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_gives_the_same_sample(task: str) -> None:
    first, again = samples(task, 3), samples(task, 3)
    for one, two in zip(first, again, strict=True):
        assert (one.prompt_text, one.answer) == (two.prompt_text, two.answer)
        assert one.pixels is None or (one.pixels == two.pixels).all()
    assert len({sample.prompt_text + sample.answer for sample in first}) == 3


@pytest.mark.parametrize("task", ["receipt", "quote", "passage", "span", "repeat"])
def test_text_sources_spell_the_answer(task: str) -> None:
    for sample in samples(task):
        prompt = sample.prompt_text + "\n"  # what follows the prompt is the source of some ends
        spelled = "".join(prompt[index] for index in sample.text_source[:-1])
        assert spelled == sample.answer


@pytest.mark.parametrize("task", ["extract", "story"])
def test_text_sources_spell_what_is_copied(task: str) -> None:
    for sample in samples(task):
        copied = [
            (character, sample.prompt_text[index])
            for character, index in zip(sample.answer, sample.text_source, strict=False)
            if index != NOWHERE
        ]
        ends = [('"', "\n")] if task == "extract" else []  # a value's quote from its line's end
        assert [pair for pair in copied if pair[0] != pair[1]] == ends
        assert len(copied) >= 6


def test_extracted_json_gives_the_field_of_the_form() -> None:
    for sample in samples("extract", 50):
        ((name, value),) = json.loads(sample.answer).items()
        assert sample.prompt_text.endswith(f"Extract as JSON: {name}")
        lines = sample.prompt_text.splitlines()
        assert [line for line in lines if line.startswith(f"{name}: ")] == [f"{name}: {value}"]


def test_a_span_goes_on_from_its_only_place() -> None:
    for sample in samples("span", 50):
        document, _, key = sample.prompt_text.rpartition("Continue: ")
        assert sample.answer.startswith(key) and len(sample.answer) > len(key)
        assert document.count(key) == 1
        assert f"{sample.answer}\n" in document


@pytest.mark.parametrize("num_chars", [300, 3000])
@pytest.mark.parametrize("make", [quote, passage, span])
def test_follow_ups_continue_the_chat_and_point_into_its_document(
    make, num_chars: int, processor
) -> None:
    sample = make(Random(7), num_chars=num_chars, num_questions=4)
    batch = collate([sample], Random(0))
    chat = [*sample.messages, {"role": "assistant", "content": sample.answer}]
    for turn in sample.follow_ups:
        chat.append({"role": "user", "content": turn.question})
        chat.append({"role": "assistant", "content": turn.answer})
    wanted = processor.tokenizer(
        processor.apply_chat_template(chat, tokenize=False), add_special_tokens=False
    )["input_ids"]
    got = batch.token_ids[0].tolist()
    assert got[: len(wanted) - 1] == wanted[:-1]  # the last end token is only predicted
    targets, places = batch.targets[0], batch.next_text[0]
    ends = (targets == build.EOS).nonzero()[:, 0].tolist()
    assert len(ends) == 4
    for index in (places != NOWHERE).nonzero()[:, 0].tolist():
        if index in ends:
            assert got[places[index]] == build.NUM_SPECIALS + ord("\n")
        else:
            assert got[places[index]] == targets[index]


def test_stories_end_once_and_at_their_end() -> None:
    endings = ("went home.", "never came back.", "friends to this day.")
    for sample in samples("story", 100):
        assert sample.answer.endswith(endings)
        assert sum(sample.answer.count(ending) for ending in endings) == 1
        assert score([sample], [sample.answer]).loops == 0


@pytest.mark.parametrize("task", ["receipt", "scan", "chart"])
def test_patch_sources_show_the_answer(task: str) -> None:
    for sample in samples(task):
        assert sample.labels is not None
        cells = sample.labels.characters.reshape(GRID * GRID, 2)
        for character, patch in zip(sample.answer, sample.patch_source, strict=False):
            if character != "\n":
                assert ord(character) - 32 in cells[patch], (character, patch, sample.answer)


def test_caption_sources_show_the_named_shapes() -> None:
    for sample in samples("caption"):
        assert sample.labels is not None
        shapes = sample.labels.shapes.reshape(-1)
        start = 0
        for line in sample.answer.splitlines(keepends=True):
            index = start + line.index(":") + 2
            patch = sample.patch_source[index]
            assert (shapes[patch] == 0) == ("nothing" in line)
            start += len(line)


def test_counts_number_the_shapes_and_show_each_in_turn() -> None:
    for sample in samples("count"):
        assert sample.labels is not None
        *lines, total = sample.answer.splitlines()
        shapes = sample.labels.shapes
        assert total == f"total: {len(lines)}" and len(lines) == (shapes > 0).sum() / 4
        patches = [patch for patch in dict.fromkeys(sample.patch_source) if patch != NOWHERE]
        assert len(patches) == len(lines)
        for number, (line, patch) in enumerate(zip(lines, patches, strict=True), 1):
            place, _, what = line.partition(": ")
            kind = int(shapes.reshape(-1)[patch]) - 1
            assert what == f"{[*COLOURS][kind // len(SHAPES)]} {SHAPES[kind % len(SHAPES)]}"
            assert place.startswith(f"{number} ")


def test_held_out_words_are_never_in_training_words() -> None:
    train, held_out = Words(Random(1)), Words(Random(1), held_out=True)
    assert not any(is_held_out(train.invented()) for _ in range(200))
    assert all(is_held_out(held_out.name()) for _ in range(50))


def test_receipt_fits_the_page_and_repeats_its_text_layer() -> None:
    for sample in samples("receipt", 100):
        assert sample.prompt_text.endswith(sample.answer)
        assert sample.answer.startswith("RECEIPT ")


@pytest.mark.parametrize("task", TASKS)
def test_chat_template_and_processor_give_the_training_ids(task: str, processor) -> None:
    sample = samples(task, 1)[0]
    text = processor.apply_chat_template(
        sample.messages, tokenize=False, add_generation_prompt=True
    )
    images = {} if sample.image is None else {"images": sample.image}
    inputs = processor(text=text, return_tensors="pt", **images)
    assert inputs["input_ids"][0].tolist() == prompt_ids(sample)
    if sample.image is not None:
        own = pixel_tensor([sample])
        # Where torchvision is installed it scales: in another order, so it rounds otherwise.
        torch.testing.assert_close(inputs["pixel_values"], own, rtol=0, atol=1e-6)


def test_tokenizer_gives_back_any_text() -> None:
    tokenizer = build.build_tokenizer()
    text = "Größe 5 €\n\t中文 🙂 <|user|"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == build.VOCAB


@pytest.mark.parametrize("make", [receipt, quote])
def test_training_forward_agrees_with_transformers(make, model) -> None:
    rng = Random(3)
    batch = collate([make(rng), make(rng)], rng)
    with torch.no_grad():
        slow = model(input_ids=batch.token_ids, pixel_values=batch.pixel_values).logits
        fast = model.lm_head(
            forward(
                model,
                batch.token_ids,
                batch.positions,
                pixel_values=batch.pixel_values,
                start=batch.start,
            ).hidden
        )
    asked = batch.targets != IGNORED
    torch.testing.assert_close(slow[:, batch.start :][asked], fast[asked], atol=1e-4, rtol=1e-4)


def test_corruption_changes_what_is_seen_and_not_what_is_wanted() -> None:
    sample = scan(Random(5))
    clean = collate([sample], Random(0))
    wrong = collate([sample], Random(0), corrupted=1.0)
    assert torch.equal(clean.targets, wrong.targets)
    assert not torch.equal(clean.token_ids, wrong.token_ids)


def test_a_quarter_of_the_tiny_model_is_enough_for_its_sibling() -> None:
    sizes = {
        size: sum(parameter.numel() for parameter in build.build_model(size).parameters())
        for size in ("nano", "tiny")
    }
    assert sizes["nano"] * 4 <= sizes["tiny"]


def test_gaps_keep_positions_rising_and_within_the_model() -> None:
    for seed in range(50):
        batch = collate([quote(Random(seed))], Random(seed), gaps=1.0)
        assert (batch.positions.diff() >= 1).all()
        assert batch.positions.max() < build.MAX_POSITIONS


def test_warm_start_looks_one_to_four_back(model) -> None:
    """The biases alone find the places; random weights would find them one time in sixty."""
    rng = Random(0)
    batch = collate([quote(rng)], rng)
    guided = frozenset((0, head) for head in range(4))
    with torch.no_grad():
        pointers = forward(
            model, batch.token_ids, batch.positions, pixel_values=None, start=20, guided=guided
        ).pointers
    asked = torch.arange(20, batch.token_ids.shape[1])
    for head in range(4):
        found = pointers[0, head][0].argmax(-1)
        assert (found == asked - head - 1).float().mean() > 0.95, f"head {head}"


@pytest.mark.parametrize("task", ["receipt", "quote", "caption", "count", "extract", "story"])
def test_losses_are_finite_and_reach_the_weights(task: str, model) -> None:
    heads = losses.PatchHeads(model.config.text_config.hidden_size)
    batch = collate(samples(task, 2), Random(0))
    losses.compute(model, heads, batch, guidance=0.3).total.backward()
    gradient = model.model.language_model.layers[0].mlp.down_proj.weight.grad
    assert gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0
    model.zero_grad()


def test_rate_falls_and_every_stage_draws_one_task() -> None:
    rates = [curriculum.rate(step / 100) for step in range(101)]
    assert rates == sorted(rates, reverse=True)
    for step in range(0, 100, 3):
        assert len({sample.task for sample in curriculum.draw(step / 100, Random(step))}) == 1


def test_scores_count_lines_loops_and_edits() -> None:
    assert edit_distance("kitten", "sitting") == 3
    sample = Sample("x", "", "one\ntwo\n", (NOWHERE,) * 9, (NOWHERE,) * 9)
    right, wrong = score([sample], ["one\ntwo\n"]), score([sample], ["one\ntoo\n"])
    assert (right.exact, right.character_error) == (1.0, 0.0)
    assert (wrong.exact, wrong.lines_right) == (0.0, 0.5)
    loops = [score([sample], [text]).loops for text in ("abcdefghijklmnopqrst" * 3, "abc" * 5)]
    assert loops == [1.0, 0.0]
