"""What --compare says of two speeds: a gain only where drafts can have brought it."""

import pytest
from rich.console import Console

from mmspec.cli.pairs import Pairs, pairs_text
from mmspec.cli.render import Comparison
from mmspec.requests import Result
from mmspec.stats import Stats, Times

TOKENS = tuple(range(21))


def result(seconds: float, *, accepted: int = 0, tokens: tuple[int, ...] = TOKENS) -> Result:
    """20 decoded tokens; each of 5 steps accepted so many drafts."""
    return Result(
        text="text",
        tokens=tokens,
        finish_reason="length",
        seed=0,
        pieces=(),
        stats=Stats(
            prompt_tokens=1,
            new_tokens=len(tokens),
            steps=5,
            accepted_lengths={accepted: 5},
            by_drafter={},
            times=Times(score_s=seconds),
        ),
    )


def pair(drafted: float, plain: float, *, accepted: int) -> Comparison:
    return Comparison(result(drafted, accepted=accepted), result(plain))


def shown(runs: Pairs) -> str:
    console = Console(width=200, force_terminal=True, color_system="standard")
    with console.capture() as capture:
        console.print(pairs_text(runs))
    return capture.get()


def test_a_gain_is_that_of_the_fastest_runs_and_each_pair_is_told() -> None:
    runs = Pairs([pair(1.0, 2.0, accepted=3), pair(1.25, 2.5, accepted=3)])
    assert runs.ratio == pytest.approx(2.0) and runs.is_gain
    text = shown(runs)
    assert "\x1b[1m2.00x\x1b[0m plain decoding's speed, at 4.00 tokens" in text
    assert "the fastest of 2 runs each, in turns" in text
    assert "pair by pair 2.00x and 2.00x" in text


@pytest.mark.parametrize(
    ("accepted", "plain", "told"),
    [
        (0, 6.7, "1.00 tokens a step: drafts had next to no part; 6.70x is no gain of theirs"),
        (0, 0.5, "1.00 tokens a step: drafts had next to no part; 0.50x is no gain of theirs"),
        (1, 3.0, "2.00 tokens a step cannot bring 3.00x: the machine had other work meanwhile"),
    ],
)
def test_a_ratio_that_drafts_cannot_have_brought_is_never_bold(
    accepted: int, plain: float, told: str
) -> None:
    runs = Pairs([pair(1.0, plain, accepted=accepted)])
    assert not runs.is_gain
    text = shown(runs)
    assert told in text
    assert "\x1b[1m" not in text and "\x1b[32m█" not in text


def test_one_run_of_each_is_called_a_rough_figure() -> None:
    assert "a rough figure" in shown(Pairs([pair(1.0, 2.0, accepted=3)]))


@pytest.mark.parametrize("where", [0, 1])
def test_a_text_that_differs_is_found_in_every_pair(where: int) -> None:
    pairs = [pair(1.0, 2.0, accepted=3), pair(1.0, 2.0, accepted=3)]
    pairs[where] = Comparison(pairs[where].drafted, result(2.0, tokens=(*TOKENS[:3], 99)))
    runs = Pairs(pairs)
    assert not runs.is_identical
    assert "the texts differ: first at token 3, with drafts 3, plain 99" in shown(runs)
