"""A picture in the terminal, in true colour."""

from PIL import Image
from rich.color import Color
from rich.color_triplet import ColorTriplet
from rich.style import Style
from rich.text import Text


def picture(image: Image.Image, *, columns: int = 32, rows: int = 16) -> Text:
    """`image` as `rows` lines of `columns` half blocks: a character is two pixels, one above the
    other."""
    pixels = image.convert("RGB").resize((columns, 2 * rows), Image.Resampling.BOX)
    text = Text(no_wrap=True)
    for row in range(rows):
        text.append("\n" if row else "")
        for column in range(columns):
            upper, lower = (_colour(pixels, column, 2 * row + half) for half in (0, 1))
            text.append("▀", Style(color=upper, bgcolor=lower))
    return text


def _colour(pixels: Image.Image, column: int, row: int) -> Color:
    pixel = pixels.getpixel((column, row))
    assert isinstance(pixel, tuple)
    return Color.from_triplet(ColorTriplet(*map(int, pixel)))
