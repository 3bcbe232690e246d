"""PDF: the text layer of each page, and the page as an image for a model that reads pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from mmspec.errors import InputError, MissingExtraError
from mmspec.inputs.limits import InputLimits
from mmspec.inputs.passages import Passage

_POINTS = 72  # an inch, in a PDF's own unit


@dataclass(frozen=True)
class PdfPage:
    """One page as it looks, and as its text layer says."""

    source: str  # the file's path
    number: int  # from 1
    text: str  # "" where the page is a scan without a text layer
    image: Image.Image = field(repr=False)

    @property
    def passage(self) -> Passage:
        """The text layer, to be drafted from beside the image; the target does not read it."""
        return Passage(self.text, f"{self.source}#{self.number}", self.source, in_prompt=False)


def pdf_pages(
    path: str | Path,
    numbers: Sequence[int] | None = None,
    *,
    dpi: int = 144,
    limits: InputLimits | None = None,
) -> Iterator[PdfPage]:
    """The pages `numbers`, from 1 (None: all), rendered one at a time.

        for page in pdf_pages("scan.pdf"):
            engine.generate("Transcribe.", images=page.image, passages=page.passage)

    Raises InputError: cannot be read, no such page, a page larger than `limits` allow; and
    MissingExtraError where pypdfium2 is not there.
    """
    path, allowed = Path(path), (limits or InputLimits()).max_image_pixels
    with opened_pdf(path) as document:
        for number in range(1, len(document) + 1) if numbers is None else numbers:
            if not 1 <= number <= len(document):
                raise InputError(f"{path}: got page {number}; expected 1 .. {len(document)}")
            page = document[number - 1]
            width, height = (side * dpi / _POINTS for side in page.get_size())
            if width * height > allowed:
                raise InputError(
                    f"{path}: page {number} has {width:.0f} x {height:.0f} pixels at {dpi} dpi, "
                    f"expected at most {allowed}: lower dpi"
                )
            image = page.render(scale=dpi / _POINTS).to_pil().convert("RGB")
            yield PdfPage(str(path), number, page_text(page), image)


def num_pages(path: Path) -> int:
    """Raises InputError and MissingExtraError, as `pdf_pages` does."""
    with opened_pdf(path) as document:
        return len(document)


@contextmanager
def opened_pdf(path: Path) -> Iterator[Any]:
    """A pypdfium2 document, closed again. Raises InputError and MissingExtraError."""
    try:
        import pypdfium2
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading PDF needs pypdfium2: install mmspec[docs]"
        ) from error
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        with pypdfium2.PdfDocument(data) as document:
            yield document
    except pypdfium2.PdfiumError as error:
        raise InputError(
            f"{path}: cannot be read as PDF: {str(error).rstrip('.')}; is it complete, and without "
            "a password?"
        ) from error


def page_text(page: Any) -> str:
    """The text layer of a pypdfium2 page, which is closed."""
    text_page = page.get_textpage()
    try:
        text = text_page.get_text_bounded().replace("\r\n", "\n")
        # Pdfium's marks for a hyphen that splits a word between two lines.
        return text.replace("\x02", "").replace("\ufffe", "")
    finally:
        text_page.close()
        page.close()
