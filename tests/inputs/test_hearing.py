"""From a recording's file to the model's answer, by the model's own processor."""

import json
import logging
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Gemma4Config
from transformers.models.gemma4.feature_extraction_gemma4 import Gemma4AudioFeatureExtractor
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil
from typer.testing import CliRunner

import mmspec
from inputs.hearing import folder, model, processor
from inputs.media_families import build_family
from inputs.test_audio import RATE, tone, wav
from inputs.text_families import byte_level
from inputs.video_stand_in import FrameCounter, with_video
from mmspec.batch import Ledger, read_tasks, run_batch
from mmspec.cli import app
from mmspec.config import Config, DecodeConfig
from mmspec.errors import InputError
from mmspec.inputs import InputProcessor

GREEDY = {"temperature": 0.0, "max_new_tokens": 8}
QUESTION = "What is said?"


@cache
def hearer(chunk: int = 0) -> mmspec.Engine:
    tokens = processor()
    config = Config(decode=DecodeConfig(prefill_chunk=chunk))
    return mmspec.load(model(tokens, dtype=torch.float64), tokens, config=config)


def messages(*audio: object) -> list[dict[str, object]]:
    parts = [{"type": "audio", "audio": one} for one in audio]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


def expected_tokens(*audio: np.ndarray) -> tuple[int, ...]:
    """What transformers makes of it: its processor, its generate."""
    engine, tokens = hearer(), processor()
    chat = messages(*audio)
    text = tokens.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    inputs = tokens(text=[text], audio=list(audio), sampling_rate=RATE, return_tensors="pt")
    inputs["input_features"] = inputs["input_features"].double()
    length = inputs["input_ids"].shape[1]
    found = engine.target.model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return tuple(found[0, length:].tolist())


def test_a_recordings_answer_is_that_of_transformers(tmp_path: Path) -> None:
    path = tmp_path / "question.wav"
    path.write_bytes(wav(tone(seconds=0.4)))
    result = hearer().generate(QUESTION, audio=path, **GREEDY)
    heard = (np.round(tone(seconds=0.4) * 32767) / 32768).astype(np.float32)
    assert result.tokens == expected_tokens(heard)
    assert result.tokens == hearer().generate(messages(str(path)), **GREEDY).tokens


def test_the_recording_matters_and_several_go_in_order() -> None:
    low, high = ((tone(hertz=h, seconds=s), RATE) for h, s in ((200.0, 0.3), (3000.0, 0.7)))
    answers = [
        hearer().generate(QUESTION, audio=audio, **GREEDY).tokens
        for audio in (low, high, [low, high], [high, low])
    ]
    assert len(set(answers)) == 4
    both = [samples.astype(np.float32) for samples, _ in (low, high)]
    assert answers[2] == expected_tokens(*both)


def test_recordings_of_different_lengths_are_padded_as_the_processor_does_it() -> None:
    """Of a text alone there is nothing to pad; Gemma 4's recordings are rows of one tensor."""
    names = {
        f"{name}_token": f"<{name}>" for name in ("image", "boi", "eoi", "audio", "boa", "eoa")
    }
    written = "transformers.models.gemma4.processing_gemma4"
    gemma4 = pytest.importorskip(written, exc_type=ImportError, reason="5.17: torchvision")
    theirs = with_video(
        gemma4.Gemma4Processor,
        video_processor=FrameCounter(),
        feature_extractor=Gemma4AudioFeatureExtractor(),
        image_processor=Gemma4ImageProcessorPil(),
        tokenizer=byte_level(tuple(names.values()), extra_special_tokens=names, pad_token="<boi>"),
    )
    config = Gemma4Config(audio_token_id=theirs.audio_token_id, audio_config={})
    heard = [(tone(seconds=0.4), RATE), (tone(seconds=0.1), RATE)]
    prompt = InputProcessor(theirs, config).encode("<audio> or <audio>?", audio=heard)
    inputs = theirs(text=["<audio> or <audio>?"], audio=[one for one, _ in heard])
    assert prompt.token_ids.tolist() == inputs["input_ids"][0]
    features = prompt.model_inputs["input_features"]
    assert torch.equal(features, torch.as_tensor(np.array(inputs["input_features"])))
    assert len(features) == 2 and len(prompt.media) == 2


def test_a_recording_at_another_rate_says_nearly_the_same() -> None:
    engine = hearer()
    assert engine.inputs is not None
    native, other = (
        engine.inputs.encode(QUESTION, audio=(tone(rate, seconds=0.4), rate))
        for rate in (RATE, 44_100)
    )
    assert torch.equal(native.token_ids, other.token_ids)
    features = [prompt.model_inputs["input_features"] for prompt in (native, other)]
    near = (features[0] - features[1]).abs().mean() / features[0].std()
    assert near < 0.1
    assert len(native.audio[0]) == len(other.audio[0])


def test_chunks_streams_and_chats_take_recordings() -> None:
    audio = [(tone(seconds=s), RATE) for s in (0.3, 0.6)]
    expected = hearer().generate(QUESTION, audio=audio, seed=5, max_new_tokens=8)
    assert hearer(5).generate(QUESTION, audio=audio, seed=5, max_new_tokens=8).tokens == (
        expected.tokens
    )
    with hearer().stream(QUESTION, audio=audio, seed=5, max_new_tokens=8) as stream:
        for _ in stream:
            pass
        assert stream.result.tokens == expected.tokens
    chat = hearer().chat()
    chat.send(QUESTION, audio=audio, max_new_tokens=4)
    second = chat.send("And then?", max_new_tokens=4)
    assert second.stats.reused_tokens > 0


def test_a_recording_of_one_token_is_heard_in_chunks_and_behind_a_known_beginning() -> None:
    """Qwen2-Audio reads such a token as text where it comes alone, and its forward fails where no
    other recording is beside it."""
    click, sound = tone(seconds=0.03), tone(seconds=0.3)
    alone = hearer().generate(messages((click, RATE)), reuse=False, **GREEDY).tokens
    for chunk in (1, 0, 7):
        for _ in range(2):
            both = hearer(chunk).generate(messages((sound, RATE), (click, RATE)), **GREEDY)
            assert both.tokens == expected_tokens(sound, click)
            assert hearer(chunk).generate(messages((click, RATE)), **GREEDY).tokens == alone


def test_who_cannot_hear_says_so() -> None:
    family = build_family("llava")
    inputs = InputProcessor(family.processor, family.config)
    with pytest.raises(InputError, match="cannot hear"):
        inputs.encode(QUESTION, audio=(tone(), RATE))
    text_only = InputProcessor(processor().tokenizer, family.config)
    with pytest.raises(InputError, match="1 recording, but llava was loaded with a tokenizer"):
        text_only.encode(QUESTION, audio=(tone(), RATE))


def test_a_placeholder_without_its_recording_is_refused() -> None:
    inputs = hearer().inputs
    assert inputs is not None
    with pytest.raises(InputError, match="1 audio placeholder "):
        inputs.encode("<|AUDIO|> What?", raw=True)
    prompt = inputs.encode("the token <|AUDIO|> in a text", audio=(tone(), RATE))
    assert {span.kind for span in prompt.media} == {"audio"}
    assert len(prompt.media) == 1, "what a user writes is no placeholder"


def test_a_folder_that_hears_is_loaded_with_its_ears(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`mmspec generate --audio` on a folder as a user has it."""
    (tmp_path / "a.wav").write_bytes(wav(tone(seconds=0.4)))
    with caplog.at_level(logging.ERROR):
        words = ["generate", str(folder(tmp_path / "model")), QUESTION, "--json"]
        words += ["--audio", str(tmp_path / "a.wav"), "--max-new-tokens", "4", "--seed", "1"]
        run = CliRunner().invoke(app, words, env={"NO_COLOR": "1"})
    assert run.exit_code == 0, run.stderr
    stats = json.loads(run.stdout)["stats"]
    assert stats["encoded_media"] == 1


def test_a_batch_file_s_recordings_are_heard(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (tmp_path / "a.wav").write_bytes(wav(tone()))
    lines = [{"id": "path", "prompt": QUESTION, "audio": "a.wav"}]
    samples = {"array": tone().tolist(), "sampling_rate": RATE}
    lines += [{"id": "samples", "prompt": QUESTION, "audio": samples}]
    lines += [{"id": "none", "prompt": QUESTION}, {"id": "gone", "prompt": "a", "audio": "b.wav"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rows = {"id": ["bytes"], "prompt": [QUESTION], "audio": [{"bytes": wav(tone()), "path": None}]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "q.parquet")
    files = [tmp_path / "p.jsonl", tmp_path / "q.parquet", tmp_path / "a.wav"]
    tasks = [*read_tasks(files[:2], prompt=None), *read_tasks(files[2:], prompt=QUESTION)]
    out = tmp_path / "out.jsonl"
    with Ledger(out, run="a") as ledger:
        tally = run_batch(hearer(), tasks, ledger, options=GREEDY, seed=1)
    assert (tally.num_answered, tally.num_failed) == (5, 1)
    said = {line["id"]: line.get("text") for line in map(json.loads, out.open())}
    alone = hearer().generate(QUESTION, audio=tmp_path / "a.wav", **GREEDY).text
    assert [said[key] for key in ("path", "samples", "bytes", str(files[2]))] == [alone] * 4
    assert said["none"] != alone and said["gone"] is None
