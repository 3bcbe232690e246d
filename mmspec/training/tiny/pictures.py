"""Tasks with a picture: a receipt with its text layer, a scan, a bar chart, coloured shapes."""

from random import Random

from mmspec.training.tiny.page import (
    COLOURS,
    COLUMNS,
    GRID,
    LINES,
    PATCH,
    SHAPES,
    draw_bar,
    draw_lines,
    draw_shapes,
)
from mmspec.training.tiny.sample import NOWHERE, Sample, nowhere
from mmspec.training.tiny.words import GOODS, ITEMS, PLACES, Words


def _page_source(lines: list[str]) -> tuple[int, ...]:
    """Patches of a transcription; a line's end comes from the blank just after its last
    character, the end of all from the first patch of the next line."""
    source: list[int] = []
    for row, line in enumerate(lines):
        source += [row * GRID + min(column // 2, GRID - 1) for column in range(len(line) + 1)]
    return (*source, len(lines) * GRID)


def _receipt_lines(words: Words) -> list[str]:
    rng = words.rng
    shop = f"{words.name()} {rng.choice(PLACES)}"
    date = f"{rng.randint(2019, 2031)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    lines = [
        f"RECEIPT {rng.randint(10000, 99999)}",
        shop[:COLUMNS],
        f"{date} {rng.randint(6, 22):02d}:{rng.randint(0, 59):02d}",
    ]
    total = 0
    for number in range(1, rng.randint(5, 9)):
        count, price = rng.randint(1, 9), rng.randint(20, 1999)
        total += count * price
        item = words.thing(ITEMS)
        if len(item) < 8 and rng.random() < 0.5:
            item = f"{words.thing(ITEMS)[:7]} {item}"
        lines.append(f"{number:02d} {count} x {item} {price // 100}.{price % 100:02d}")
    lines.append(f"TOTAL {total // 100}.{total % 100:02d}")
    if rng.random() < 0.7:
        lines.append(f"PAID {rng.choice(('card', 'cash', 'gift card'))} {rng.randint(0, 9999):04d}")
    lines.append(f"Served by {words.name()}. Thank you!")
    return lines


def _page_lines(words: Words) -> list[str]:
    """Running text, names and numbers, for reading without a layout to lean on."""
    rng = words.rng
    lines = []
    for _ in range(rng.randint(4, LINES - 1)):
        width = rng.randint(8, COLUMNS)
        parts: list[str] = []
        while True:
            draw = rng.random()
            if draw < 0.2:
                part = str(rng.randint(0, 10 ** rng.randint(1, 6)))
            elif draw < 0.3:
                part = words.invented().upper()
            elif draw < 0.36:
                code = [chr(rng.randint(33, 126)) for _ in range(rng.randint(1, 6))]
                part = "".join(code)
            else:
                part = words.thing(GOODS, 0.7)
            if rng.random() < 0.15:
                part += rng.choice(",.;:!?")
            if len(" ".join([*parts, part])) > width:
                break
            parts.append(part)
        lines.append(" ".join(parts) or words.name())
    return lines


def receipt(rng: Random, held_out: bool = False) -> Sample:
    """Transcribe a receipt whose text layer stands in the prompt, as with a scanned PDF."""
    lines = _receipt_lines(Words(rng, held_out))
    pixels, labels = draw_lines(lines, rng)
    answer = "".join(line + "\n" for line in lines)
    lead = "Transcribe the page. Text layer:\n"
    return Sample(
        task="receipt",
        prompt_text=lead + answer,
        answer=answer,
        text_source=tuple(range(len(lead), len(lead) + len(answer) + 1)),
        patch_source=_page_source(lines),
        pixels=pixels,
        labels=labels,
    )


def scan(rng: Random, held_out: bool = False) -> Sample:
    """Transcribe a page or a receipt from the picture alone."""
    words = Words(rng, held_out)
    lines = _receipt_lines(words) if rng.random() < 0.5 else _page_lines(words)
    pixels, labels = draw_lines(lines, rng)
    answer = "".join(line + "\n" for line in lines)
    prompt = "Transcribe the page."
    return Sample("scan", prompt, answer, nowhere(answer), _page_source(lines), pixels, labels)


def chart(rng: Random, held_out: bool = False) -> Sample:
    """Read a horizontal bar chart as lines of label and value."""
    words = Words(rng, held_out)
    lines = [f"{words.name()} {words.thing(GOODS, 0.3)}"]
    values = [rng.randint(1, 99) for _ in range(rng.randint(3, 7))]
    for value in values:
        lines.append(f"{words.thing(GOODS, 0.6)} {value}")
    spaced = [line for text in lines for line in (text, "")]
    pixels, labels = draw_lines(spaced, rng)
    colour = rng.choice(list(COLOURS.values()))
    for index, value in enumerate(values):
        draw_bar(pixels, labels, 2 * (index + 1), 8, max(2, value * 8 * PATCH // 100), colour)
    answer = "".join(line + "\n" for line in lines)
    source: list[int] = []
    for index, line in enumerate(lines):
        source += [2 * index * GRID + column // 2 for column in range(len(line) + 1)]
    source.append(min(2 * len(lines), LINES - 1) * GRID)
    prompt = "Read the chart."
    return Sample("chart", prompt, answer, nowhere(answer), tuple(source), pixels, labels)


_ROWS = {"top": (1, 2), "middle": (6, 7, 8), "bottom": (12, 13)}  # first patch rows of a shape
_COLUMNS = {"left": (1, 2), "centre": (6, 7, 8), "right": (12, 13)}


_REGIONS = [(row, column) for row in _ROWS for column in _COLUMNS]


def _place(rng: Random) -> dict[int, tuple[int, int, str, str]]:
    """Shapes for three to seven of the nine regions, by region in reading order, as (patch row,
    patch column, colour, shape)."""
    placed = {}
    filled = set(rng.sample(range(9), rng.randint(3, 7)))
    for index, (row, column) in enumerate(_REGIONS):
        top, left = rng.choice(_ROWS[row]), rng.choice(_COLUMNS[column])
        if index in filled:
            placed[index] = (top, left, rng.choice(list(COLOURS)), rng.choice(SHAPES))
    return placed


def caption(rng: Random, held_out: bool = False) -> Sample:
    """Say what stands in each of the nine regions of a picture of coloured shapes.

    Held-out pictures differ by their seed: the colours and shapes are a closed set.
    """
    placed = _place(rng)
    answer, source = "", []
    for index, (row, column) in enumerate(_REGIONS):
        what, patch = "nothing", _ROWS[row][1] * GRID + _COLUMNS[column][1]
        if index in placed:
            top, left, colour, shape = placed[index]
            what, patch = f"{colour} {shape}", top * GRID + left
        lead = f"{row} {column}: "
        answer += f"{lead}{what}\n"
        source += [NOWHERE] * len(lead) + [patch] * len(what) + [NOWHERE]
    pixels, labels = draw_shapes(list(placed.values()), rng)
    source.append(NOWHERE)
    prompt = "Describe the picture."
    return Sample("caption", prompt, answer, nowhere(answer), tuple(source), pixels, labels)


def count(rng: Random, held_out: bool = False) -> Sample:
    """Number the shapes of a picture in reading order and give their total."""
    placed = _place(rng)
    answer, source = "", []
    for number, (index, (top, left, colour, shape)) in enumerate(placed.items(), 1):
        line = f"{number} {' '.join(_REGIONS[index])}: {colour} {shape}"
        answer += f"{line}\n"
        source += [top * GRID + left] * len(line) + [NOWHERE]
    total = f"total: {len(placed)}\n"
    answer += total
    source += [NOWHERE] * (len(total) + 1)
    pixels, labels = draw_shapes(list(placed.values()), rng)
    prompt = "Count the shapes."
    return Sample("count", prompt, answer, nowhere(answer), tuple(source), pixels, labels)
