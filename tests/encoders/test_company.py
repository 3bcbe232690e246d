"""Whether media are encoded alone or together: two are looked at, once for each kind of company."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from mmspec.encoders.company import Company, CompanyError
from mmspec.encoders.media import MediaItem

Said = Callable[[list[Tensor]], list[Tensor]]
MODEL = nn.Linear(1, 1)


class Encoder:
    """Gives what it reads, as `said` has it; counts its calls."""

    def __init__(self, said: Said = list, dtype: torch.dtype = torch.float32) -> None:
        self.said, self.dtype, self.num_calls = said, dtype, 0

    def __call__(self, items: Sequence[MediaItem]) -> object:
        self.num_calls += 1
        rows = self.said([item.tensors["pixel_values"][0] for item in items])
        return BaseModelOutputWithPooling(pooler_output=[one.to(self.dtype) for one in rows])


def items_of(*tokens: int, is_one: bool = False) -> list[MediaItem]:
    """Of so many tokens; `is_one`: all of one content."""
    return [
        MediaItem(
            "image", 0, count, {"pixel_values": torch.ones(1, count, 8) + place * (not is_one)}
        )
        for place, count in enumerate(tokens)
    ]


def check(company: Company, items: Sequence[MediaItem], encoder: Encoder) -> list[MediaItem]:
    """Those whose features it gave."""
    return [item for item, _ in company.check(MODEL, items, encoder)]


def test_company_of_a_kind_is_looked_at_once() -> None:
    """Of the shortest and the longest: what else there is between them."""
    company, encoder = Company(), Encoder()
    alike, mixed = items_of(4, 4, 4), items_of(5, 4, 7, 5)
    repeated = items_of(4, 4, is_one=True)
    assert check(company, items_of(4), encoder) == [] and encoder.num_calls == 0
    assert check(company, alike, encoder) == [alike[0], alike[-1]] and encoder.num_calls == 3
    assert check(company, mixed, encoder) == [mixed[1], mixed[2]] and encoder.num_calls == 6
    assert check(company, repeated, encoder) == [repeated[-1]] * 2 and encoder.num_calls == 9
    for known in (alike, mixed, repeated, items_of(5, 6)):
        assert check(company, known, encoder) == [] and encoder.num_calls == 9


def test_short_media_beside_long_ones_are_company_of_their_own() -> None:
    """What is below the length to which all are padded may depend on it; what is above does not."""

    def padded(rows: list[Tensor]) -> list[Tensor]:
        longest = max(map(len, rows))
        return [row + 8 * (len(row) < min(longest, 8)) for row in rows]

    company = Company()
    assert len(check(company, items_of(9, 20), Encoder(padded))) == 2 and not company.together
    with pytest.raises(CompanyError):
        check(company, items_of(5, 20), Encoder(padded))


def test_what_was_taken_one_by_one_before_is_taken_together_from_then_on() -> None:
    company, encoder = Company(), Encoder(lambda rows: [row + len(rows) for row in rows])
    with pytest.raises(CompanyError):
        check(company, items_of(4, 4), encoder)
    assert company.together == {"image"}
    calls = encoder.num_calls
    with pytest.raises(CompanyError):
        check(company, items_of(4, 6), encoder)
    assert encoder.num_calls == calls and check(company, items_of(4), encoder) == []


@pytest.mark.parametrize(
    ("dtype", "share"), [(torch.float64, 1e-4), (torch.float32, 0.02), (torch.bfloat16, 0.8)]
)
def test_rounding_is_no_company(dtype: torch.dtype, share: float) -> None:
    for part in (share, share / 100):
        company = Company()
        said = Encoder(
            lambda rows, part=part: [row * (1 + part * len(rows)) for row in rows], dtype
        )
        if part == share:
            with pytest.raises(CompanyError):
                check(company, items_of(4, 4), said)
        else:
            check(company, items_of(4, 4), said)
        assert bool(company.together) == (part == share)


def test_of_nan_nothing_is_known() -> None:
    company, encoder = Company(), Encoder(lambda rows: [row * torch.nan for row in rows])
    for calls in (3, 6):
        assert len(check(company, items_of(4, 4), encoder)) == 2 and encoder.num_calls == calls
    assert not company.together


def test_features_in_no_form_that_could_be_kept_say_nothing_of_company() -> None:
    """They stay the model's own. If only those of one alone have none, two are company."""

    def twice(rows: list[Tensor]) -> list[Tensor]:
        return [*rows, *rows]

    company = Company()
    assert check(company, items_of(4, 4), Encoder(twice)) == [] and not company.together
    with pytest.raises(CompanyError):
        check(company, items_of(4, 4), Encoder(lambda rows: twice(rows) if len(rows) < 2 else rows))


def test_memory_that_is_used_up_says_nothing_of_company() -> None:
    def full(rows: list[Tensor]) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    company = Company()
    with pytest.raises(torch.OutOfMemoryError):
        check(company, items_of(4, 4), Encoder(full))
    alone = Encoder(lambda rows: rows if len(rows) > 1 else full(rows))
    with pytest.raises(torch.OutOfMemoryError):
        check(company, items_of(4, 4), alone)
    assert not company.together


def test_an_encoder_that_cannot_read_a_part_reads_all() -> None:
    def whole(rows: list[Tensor]) -> list[Tensor]:
        if len(rows) != 3:
            raise ValueError("expected 3 images")
        return rows

    company = Company()
    with pytest.raises(CompanyError):
        check(company, items_of(4, 4, 4), Encoder(whole))
    assert company.together == {"image"}
