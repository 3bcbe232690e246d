"""A Result in a notebook: its words, who drafted them, its figures."""

from dataclasses import replace

from mmspec.errors import InputError
from mmspec.requests import Result
from mmspec.stats import StatsRecorder
from mmspec.stream import Piece


def answer(*pieces: Piece) -> Result:
    text = "".join(piece.text for piece in pieces)
    return Result(text, (1, 2), "eos", 7, StatsRecorder().finished(2), pieces)


def test_drafted_words_are_shaded_and_nothing_of_the_text_acts() -> None:
    said = answer(Piece("<b>", None), Piece("a & b\n", "prompt_lookup"), Piece("c", "eagle"))
    shown = said._repr_html_()
    assert "&lt;b&gt;<span" in shown and "<b>" not in shown
    assert 'title="prompt_lookup">a &amp; b\n</span>' in shown
    first, second = shown.split("background:rgba(")[1:]
    assert first[:9] != second[:9]  # a shade for each drafter
    assert "2 tokens · " in shown and "seed 7 · ended by eos" in shown


def test_samples_and_errors_are_shown_too() -> None:
    failed = replace(answer(), error=InputError("<no> such file"))
    shown = replace(answer(Piece("one", None)), others=(failed,))._repr_html_()
    assert shown.index("one") < shown.index("<hr>") < shown.index("&lt;no&gt; such file")
