"""A drafter reads the text where it lies: it can change none of it, and at a step it reads what is
new, however long the text is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matrix
import pytest
import torch
from families import FAMILIES
from families.prompts import prompt_inputs
from hypothesis import given
from hypothesis import strategies as st
from matrix import Cell

import mmspec
from mmspec.drafters.cascade import run
from mmspec.drafters.token_view import TokenView

PROMPT = 400
FEW = 40  # tokens: seams, tails and n-grams are looked at again
INDEX = st.none() | st.integers(-9, 9)


@given(
    st.lists(st.integers(0, 9), max_size=6),
    st.lists(st.integers(0, 9), max_size=3),
    st.builds(slice, INDEX, INDEX, INDEX.filter(lambda step: step != 0)),
    st.integers(-10, 10),
)
def test_a_view_reads_as_the_list_of_both_does(
    tokens: list[int], more: list[int], part: slice, place: int
) -> None:
    both, view = tokens + more, TokenView(TokenView(tokens), more)
    assert list(view) == both and len(view) == len(both) and view[part] == both[part]
    assert type(view[part]) is list and torch.tensor(view).tolist() == both
    if -len(both) <= place < len(both):
        assert view[place] == both[place]
    else:
        with pytest.raises(IndexError):
            view[place]


def test_it_grows_with_the_text_and_cannot_be_written() -> None:
    tokens = [1, 2]
    view = TokenView(tokens)
    kept = view[:]
    tokens.append(3)
    assert list(view) == [1, 2, 3] and kept == [1, 2]
    with pytest.raises(TypeError):
        view[0] = 5  # type: ignore[index]


class Counted(TokenView):
    """Counts the tokens that are read of it."""

    num_read = 0

    def __iter__(self) -> Iterator[int]:
        self.num_read += len(self)
        return super().__iter__()

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.num_read += len(found) if isinstance(found, list) else 1
        return found


@pytest.mark.parametrize(
    "name",
    [
        "prompt_lookup",
        "retrieval_online",
        "lookahead",
        "token_recycling",
        "draft_same",
        "draft_other",
        "eagle1",
        "glide",
        "medusa_own",
        "dflash",
        "layer_skip",
        "compressed_window",
        "cascade",
    ],
)
def test_a_step_reads_little_of_a_long_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    views: list[Counted] = []

    def view(tokens: Any, more: Any = ()) -> Counted:
        views.append(Counted(tokens, more))
        return views[-1]

    monkeypatch.setattr("mmspec.drafting.TokenView", view)
    monkeypatch.setattr(run, "TokenView", view)
    inputs = prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=PROMPT, seed=0)
    request = mmspec.Request(inputs, max_new_tokens=24, temperature=0)
    cell = Cell("llama", name, "greedy", 1, "text")
    engine = matrix._engine(
        "llama", "float64", 8, [matrix._drafter(name, cell, [request], [], Path())]
    )
    engine.generate(request)
    first, *later = [view.num_read for view in views if view.num_read]
    assert len(later) >= 2 and sum(read > FEW for read in (first, *later)) <= 1, (first, later)
