"""Answers: what the loop has chosen, told as a Stream, as steps, or as a Result."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from mmspec.errors import InputError, MmspecError
from mmspec.requests import Progress, Result
from mmspec.row import FinishReason, Row
from mmspec.stats import StatsRecorder
from mmspec.stream import Piece


class Stream:
    """The pieces of one answer as they become certain; `result` once it has ended.

    A context manager: leaving it, or `close`, ends the decoding and frees its KV.
    """

    def __init__(
        self, row: Row, steps: Iterator[Row], tokenizer: PreTrainedTokenizerBase | None
    ) -> None:
        self._row = row
        self._tokenizer = tokenizer
        self._steps = steps
        self._pieces: list[Piece] = []
        self._num_yielded = 0
        self._generator = self._generate()
        self.on_end: Callable[[Result], None] | None = None  # told the answer, whole or closed

    def __iter__(self) -> Iterator[Piece]:
        return self._generator

    def __next__(self) -> Piece:
        return next(self._generator)

    def steps(self) -> Iterator[int]:
        """In place of the pieces: the number of chosen tokens, after the prompt and each step."""
        for row in self._steps:
            self._pieces += row.take_pieces()
            yield row.num_chosen
        if self._row.error is not None:
            raise self._row.error
        self._tell_end()

    def _generate(self) -> Iterator[Piece]:
        for _ in self.steps():
            fresh, self._num_yielded = self._pieces[self._num_yielded :], len(self._pieces)
            yield from fresh

    @property
    def result(self) -> Result:
        """The answer, whole or up to `close`. Raises InputError while it is being generated."""
        if not self._row.is_done:
            raise InputError("the stream has not ended: read its pieces to the end first")
        return result_of(self._row, self._pieces, self._tokenizer)

    def close(self) -> None:
        """Ends the decoding; `result` then holds what was generated, as "closed"."""
        self._generator.close()  # type: ignore[attr-defined]
        self._steps.close()  # type: ignore[attr-defined]
        self._row.close()
        self._pieces += self._row.take_pieces()
        self._tell_end()

    def _tell_end(self) -> None:
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(self.result)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Answers:
    """Samples as they end -> one Result a request."""

    def __init__(self) -> None:
        self._samples: dict[int, dict[int, Result]] = {}  # of each request, by their numbers
        self._expected: dict[int, int] = {}
        self._ready: list[Progress] = []

    def expect(self, index: int, num_samples: int) -> None:
        self._expected[index] = num_samples
        self._samples.setdefault(index, {})

    def add(self, index: int, number: int, result: Result) -> None:
        samples = self._samples[index]
        samples[number] = result
        if len(samples) == self._expected[index]:
            self._ready.append(Progress(index, result=_together(samples)))
            del self._samples[index], self._expected[index]

    def take(self) -> list[Progress]:
        """The requests that have ended since the last call."""
        ready, self._ready = self._ready, []
        return ready


def result_of(
    row: Row, pieces: Sequence[Piece], tokenizer: PreTrainedTokenizerBase | None
) -> Result:
    assert row.finish_reason is not None
    media = [range(span.start, span.stop) for span in row.prompt.media]
    kept = row.sampler.recorder.kept(media, _decoded_alone(tokenizer))
    return Result(
        text="".join(piece.text for piece in pieces),
        tokens=tuple(row.chosen),
        finish_reason=row.finish_reason,
        seed=row.sampler.seed,
        stats=row.stats.finished(row.num_chosen, row.drafting.pace.choices),
        pieces=tuple(pieces),
        error=row.error,
        sample=row.sampler.sample,
        logprobs=kept.logprobs,
        prompt_logprobs=kept.prompt_logprobs,
        scores=kept.scores,
        logits=kept.logits,
    )


def progress_of(row: Row, tokenizer: PreTrainedTokenizerBase | None) -> Progress:
    return Progress(
        row.index,
        row.sampler.sample,
        row.num_chosen,
        tuple(row.take_pieces()),
        row.sampler.recorder.take_logprobs(_decoded_alone(tokenizer)),
        row.finish_reason,
    )


def unbegun_result(reason: FinishReason, error: MmspecError | None = None) -> Result:
    return Result("", (), reason, None, StatsRecorder().finished(0), error=error)


def _decoded_alone(
    tokenizer: PreTrainedTokenizerBase | None,
) -> Callable[[int], str | None] | None:
    if tokenizer is None:
        return None

    def decode(token: int) -> str | None:
        try:
            return str(tokenizer.decode([token]))
        except Exception:  # slow ones fail beyond their vocabulary: no reason to end anything
            return None

    return decode


def _together(samples: Mapping[int, Result]) -> Result:
    """A request's samples as one Result, in the order of their numbers. What was kept of the
    prompt is all samples' own."""
    first, *others = (samples[number] for number in sorted(samples))
    kept = first.prompt_logprobs
    return replace(first, others=tuple(replace(other, prompt_logprobs=kept) for other in others))
