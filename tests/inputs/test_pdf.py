"""PDF pages: the picture and the text layer of the same page."""

from pathlib import Path

import numpy as np
import pytest
from pdfs import pdf, reads_pdf

from mmspec.errors import InputError
from mmspec.inputs import InputLimits, pdf_pages

pytestmark = reads_pdf


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "two.pdf"
    path.write_bytes(pdf("First page", "Second one", ""))
    return path


def test_each_page_is_a_picture_and_its_text_beside_the_prompt(path: Path) -> None:
    pages = list(pdf_pages(path))
    assert [(page.number, page.text) for page in pages] == [
        (1, "First page"),
        (2, "Second one"),
        (3, ""),
    ]
    assert {page.image.size for page in pages} == {(600, 200)}, "300 x 100 points at 144 dpi"
    inks = [int((np.asarray(page.image) < 128).sum()) for page in pages]
    assert min(inks[:2]) > 100 and inks[2] == 0
    passage = pages[1].passage
    assert (passage.text, passage.id, passage.in_prompt) == ("Second one", f"{path}#2", False)


def test_pages_are_chosen_by_number_and_size_by_dpi(path: Path) -> None:
    (page,) = pdf_pages(path, [2], dpi=72)
    assert (page.text, page.image.size) == ("Second one", (300, 100))


@pytest.mark.parametrize("number", [0, 4, -1])
def test_a_page_that_is_not_there_is_refused(path: Path, number: int) -> None:
    with pytest.raises(InputError, match=rf"got page {number}; expected 1 \.\. 3"):
        list(pdf_pages(path, [number]))


def test_a_page_too_large_is_refused_before_it_is_drawn(path: Path) -> None:
    with pytest.raises(InputError, match="600 x 200 pixels at 144 dpi"):
        list(pdf_pages(path, limits=InputLimits(max_image_pixels=100_000)))


def test_what_is_no_pdf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        list(pdf_pages(tmp_path / "none.pdf"))
    (tmp_path / "text.pdf").write_text("text")
    with pytest.raises(InputError, match="cannot be read as PDF"):
        list(pdf_pages(tmp_path / "text.pdf"))
