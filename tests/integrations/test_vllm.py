"""`mmspec.integrations.vllm`, against a stand-in with vLLM's interface."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
from integrations.vllm_stand_in import Job, StandIn, vllm_config

from mmspec.errors import ConfigError, DatastoreError
from mmspec.inputs.text_tokens import TextTokens
from mmspec.integrations.known_texts import BYTES_PER_TOKEN, KnownTexts
from mmspec.integrations.vllm import DATASTORE_VARIABLE, MmspecProposer
from mmspec.retrieval import DatastoreWriter, Document
from mmspec.training.tiny.build import build_tokenizer


def quoting(rng: Random, low: int = 0, *, size: int = 120, vocab: int = 300) -> Job:
    """A request whose answer quotes its prompt in two places, with words of its own between."""
    prompt = [rng.randrange(low, low + vocab) for _ in range(size)]
    own = [rng.randrange(low, low + vocab) for _ in range(3)]
    return Job(prompt, [*prompt[10:50], *own, *prompt[70:110]])


def test_what_is_quoted_is_drafted_and_the_text_is_the_models_own() -> None:
    job = quoting(Random(1))
    StandIn(MmspecProposer(vllm_config()), places=1).serve([job])
    assert job.chosen == job.answer
    # Forty tokens twice, eight a step and one: some six steps each, and the words between.
    assert len(job.answer) / job.num_steps > 4, job.num_steps


def test_a_draft_is_no_longer_than_asked_and_ends_before_the_context_does() -> None:
    job = Job([*range(50), *range(50), 3], [*range(4, 50), 900, 901])
    config = vllm_config(num_speculative_tokens=5, max_model_len=130)
    StandIn(MmspecProposer(config), places=1, max_model_len=200).serve([job])
    assert max(map(len, job.drafted)) == 5
    assert max(job.lengths) > 130, "the test has to go beyond the context"
    for draft, length in zip(job.drafted, job.lengths, strict=True):
        assert length + len(draft) < 130 or not draft


@pytest.mark.parametrize("as_numpy", [False, True])
def test_rows_that_move_and_places_used_again_draft_from_their_own_request(as_numpy: bool) -> None:
    rng = Random(3)
    # Each has words of its own: a token of another request in a draft shows at once.
    jobs = [quoting(rng, low=1000 * n, size=rng.randrange(115, 200)) for n in range(12)]
    server = StandIn(
        MmspecProposer(vllm_config(vocab_size=20_000)), places=4, rng=rng, as_numpy=as_numpy
    )
    server.serve(jobs)
    for number, job in enumerate(jobs):
        assert job.chosen == job.answer
        drafted = {token for draft in job.drafted for token in draft}
        assert drafted <= set(range(1000 * number, 1000 * number + 300)), number
        assert len(job.answer) / job.num_steps > 3, (number, job.num_steps)


def test_a_new_request_in_a_place_is_known_as_new_though_it_begins_as_the_old_one_did() -> None:
    system = list(range(40))
    first = Job([*system, 100, 101, 102, 103, 104, 105], [100, 101, 102, 103, 104, 105])
    second = Job([*system, 200, 201, 202, 203, 204, 205], [200, 201, 202, 203, 204, 205])
    StandIn(MmspecProposer(vllm_config()), places=1).serve([first, second])
    assert {t for draft in second.drafted for t in draft}.isdisjoint(range(100, 106))
    assert second.chosen == second.answer


def test_a_prompt_is_indexed_while_it_is_prefilled_and_a_bounded_part_a_step() -> None:
    job = quoting(Random(4), size=400)
    proposer = MmspecProposer(vllm_config(tokens_per_step=100))
    StandIn(proposer, places=1, chunk=50).serve([job])
    assert len(job.answer) / job.num_steps > 4  # eight chunks: read when the answer began
    late = quoting(Random(4), size=400)
    proposer = MmspecProposer(vllm_config(tokens_per_step=100))
    StandIn(proposer, places=1, chunk=400).serve([late])
    assert late.drafted[:3] == [[], [], []], "drafted from an index that was not there yet"
    assert late.chosen == late.answer and any(late.drafted)


def test_memory_is_bounded_however_many_requests_come() -> None:
    rng = Random(5)
    jobs = [quoting(rng, size=rng.randrange(115, 300)) for _ in range(30)]
    proposer = MmspecProposer(vllm_config(max_bytes=600 * BYTES_PER_TOKEN))
    kept = list[int]()
    propose = proposer.propose

    def watched(**kwargs: object) -> list[list[int]]:
        drafts = propose(**kwargs)  # type: ignore[arg-type]
        kept.append(proposer._texts.num_kept)
        return drafts

    proposer.propose = watched  # type: ignore[assignment, method-assign]
    StandIn(proposer, places=4, rng=rng).serve(jobs)
    assert max(kept) <= 600
    assert all(job.chosen == job.answer for job in jobs)
    assert any(any(job.drafted) for job in jobs)


def test_texts_are_found_by_their_tokens_wherever_they_are() -> None:
    texts = KnownTexts(max_tokens=10_000, min_match=2)
    one, two = np.arange(50, dtype=np.int32), np.arange(100, 160, dtype=np.int32)
    before = texts.of_step({0: one, 1: two})
    longer = np.concatenate([one, np.array([7, 8], np.int32)])
    after = texts.of_step({1: longer, 0: two})
    assert after[1] is before[0] and after[0] is before[1]
    assert after[1].num_tokens == 52
    away = texts.of_step({0: two})  # the other one waits
    back = texts.of_step({0: longer, 1: two})
    assert back[0] is before[0] and back[1] is away[0]
    other = one.copy()
    other[20] = 999
    assert texts.of_step({0: other})[0] not in (before[0], before[1])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a tokenizer, as vLLM names a model."""
    build_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def datastore(folder: Path, text: list[int], *, tokenizer: str) -> Path:
    with DatastoreWriter.create(folder, tokenizer=tokenizer, vocab_size=300) as writer:
        writer.begin()
        writer.append(Document("one", "one.txt", text))
        writer.commit()
    return folder


def test_a_datastore_drafts_what_no_prompt_holds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    made = TextTokens(AutoTokenizer.from_pretrained(model)).hash()
    rng = Random(6)
    text = [rng.randrange(300) for _ in range(100)]
    store = datastore(tmp_path / "store", text, tokenizer=made)
    job = Job(text[:8], text[8:80])
    bare = Job(text[:8], text[8:80])
    monkeypatch.setenv(DATASTORE_VARIABLE, str(store))
    proposer = MmspecProposer(vllm_config(tokenizer=str(model), vocab_size=300))
    StandIn(proposer, places=1).serve([job])
    monkeypatch.delenv(DATASTORE_VARIABLE)
    StandIn(MmspecProposer(vllm_config(vocab_size=300)), places=1).serve([bare])
    assert job.chosen == job.answer == bare.chosen
    assert job.num_steps < bare.num_steps / 3, (job.num_steps, bare.num_steps)
    # What is added while it serves is found by the next request.
    new = [rng.randrange(300) for _ in range(60)]
    with DatastoreWriter.open(store) as writer:
        writer.begin()
        writer.append(Document("two", "two.txt", new))
        writer.commit()
    later = Job(new[:8], new[8:])
    StandIn(proposer, places=1).serve([later])
    assert later.chosen == later.answer and later.num_steps < len(later.answer) / 3


def test_a_datastore_of_another_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    store = datastore(tmp_path / "store", [1, 2, 3], tokenizer="sha256:other")
    with pytest.raises(DatastoreError, match="another tokenizer"):
        MmspecProposer(vllm_config(tokenizer=str(model), datastores=[str(store)]))


def test_a_setting_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'min_match'"):
        MmspecProposer(vllm_config(min_mach=3))


def test_what_was_refused_is_drafted_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer begins as many places of the prompt do, and goes on otherwise after each."""
    rng = Random(8)
    places = [[rng.randrange(300) for _ in range(20)] for _ in range(25)]
    prompt = [token for place in places for token in place]
    answer = [t for n, place in enumerate(places) for t in (*place[:5], 400 + n)]

    def refused() -> int:
        job = Job(prompt, answer)
        proposer = MmspecProposer(vllm_config(max_model_len=1000))
        StandIn(proposer, places=1, max_model_len=1000).serve([job])
        assert job.chosen == job.answer
        return sum(map(len, job.drafted)) - (len(answer) - job.num_steps)

    learning = refused()
    monkeypatch.setattr(MmspecProposer, "_observe", lambda *_: None)
    assert learning < 0.5 * refused()
