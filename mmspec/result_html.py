"""A Result as a notebook shows it: drafted words shaded by who drafted them, the figures below."""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmspec.requests import Result

# Red, green, blue; thin enough for light and dark pages.
_SHADES = ("46,160,67", "9,105,218", "191,57,137", "191,135,0", "87,96,106")


def result_html(result: "Result") -> str:
    """All samples of the prompt, one below the other."""
    return "<hr>".join(map(_sample_html, result.samples))


def _sample_html(result: "Result") -> str:
    shades: dict[str, str] = {}
    words = []
    for piece in result.pieces:
        text = escape(piece.text)
        if piece.drafter is not None:
            shade = shades.setdefault(piece.drafter, _SHADES[len(shades) % len(_SHADES)])
            name = escape(piece.drafter)
            text = f'<span style="background:rgba({shade},.25)" title="{name}">{text}</span>'
        words.append(text)
    error = "" if result.error is None else f"<p><b>{escape(str(result.error))}</b></p>"
    answer = "".join(words) if words else escape(result.text)
    return (
        f'<div style="white-space:pre-wrap">{answer}</div>{error}'
        f"<small>{escape(result.summary)}</small>"
    )
