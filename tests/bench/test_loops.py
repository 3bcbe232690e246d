from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from mmspec.bench.loops import loop_start


def test_a_text_that_repeats_nothing_is_whole() -> None:
    assert loop_start([]) == 0
    assert loop_start(list(range(500))) == 500


def test_a_loop_begins_where_its_period_comes_again() -> None:
    new = list(range(100, 130))
    period = list(range(25))
    assert loop_start([*new, *period * 3]) == 30 + 25
    assert loop_start([*new, *period * 40]) == 30 + 25


def test_twice_is_no_loop() -> None:
    text = [*range(40), *range(40)]
    assert loop_start(text) == len(text)
    assert loop_start([*text, *range(19)]) == len(text) + 19
    assert loop_start([*text, *range(20)]) == 40


def test_a_short_period_is_found_by_its_overlapping_grams() -> None:
    assert loop_start([7] * 21) == 21
    assert loop_start([7] * 22) == 1
    assert loop_start([1, 2, 3, *[8, 9] * 30]) == 5


def test_a_quote_between_other_words_may_come_three_times() -> None:
    fresh = count(1000)
    quote = list(range(15))  # shorter than the gram
    text = [token for _ in range(5) for token in (*quote, next(fresh))]
    assert loop_start(text) == len(text)


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 4), st.integers(2, 4))
def test_the_first_gram_to_come_so_often_decides(text: list[int], gram: int, times: int) -> None:
    """Against the definition itself, prefix by prefix."""
    expected = len(text)
    for stop in range(gram, len(text) + 1):
        last = text[stop - gram : stop]
        places = [i for i in range(stop - gram + 1) if text[i : i + gram] == last]
        if len(places) == times:
            expected = places[1]
            break
    assert loop_start(text, gram=gram, times=times) == expected
