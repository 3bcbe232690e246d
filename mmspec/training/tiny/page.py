"""Drawing the pictures: a page is a grid of characters, two of which fill one patch of the tower.

A page has 16 lines of 32 characters of PIL's built-in 6 x 11 bitmap font on a 12-pixel line pitch,
so on 192 x 192 pixels each 12 x 12 patch shows exactly two characters of one line.
"""

from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 192  # pixels
PATCH = 12  # pixels
GRID = SIDE // PATCH  # patches a side
LINES, COLUMNS = GRID, 2 * GRID  # characters on a page

COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (235, 200, 30),
    "black": (25, 25, 25),
    "purple": (140, 50, 170),
    "orange": (240, 130, 20),
    "pink": (245, 140, 190),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
NOT_TEXT = 95  # the character class of a half patch that shows a picture


@dataclass(frozen=True)
class PatchLabels:
    """What each patch shows: the truth for the auxiliary heads on the projector's output."""

    characters: NDArray[np.uint8]  # (GRID, COLUMNS), code point - 32, NOT_TEXT for pictures
    shapes: NDArray[np.uint8]  # (GRID, GRID), 0 or 1 + colour * len(SHAPES) + shape


@cache
def _glyphs() -> NDArray[np.float32]:
    """Ink of the 95 printable ASCII characters, (95, PATCH, PATCH // 2) in 0..1."""
    font = ImageFont.load_default_imagefont()
    glyphs = np.zeros((95, PATCH, PATCH // 2), np.float32)
    for index in range(1, 95):
        cell = Image.new("L", (PATCH // 2, PATCH))
        ImageDraw.Draw(cell).text((0, 0), chr(32 + index), fill=255, font=font)
        glyphs[index] = np.asarray(cell, np.float32) / 255
    return glyphs


def draw_lines(lines: list[str], rng: Random) -> tuple[NDArray[np.uint8], PatchLabels]:
    """Text from the upper left corner; paper and ink vary a little from page to page."""
    assert len(lines) <= LINES and all(len(line) <= COLUMNS for line in lines)
    codes = np.zeros((LINES, COLUMNS), np.uint8)
    for row, line in enumerate(lines):
        codes[row, : len(line)] = np.frombuffer(line.encode("ascii"), np.uint8) - 32
    ink = _glyphs()[codes]  # (LINES, COLUMNS, PATCH, PATCH // 2)
    ink = ink.transpose(0, 2, 1, 3).reshape(SIDE, SIDE, 1)
    shade = rng.randint(238, 255)
    paper = np.array([min(255, shade + rng.randint(-6, 6)) for _ in range(3)], np.float32)
    pen = np.array([rng.randint(0, 50) for _ in range(3)], np.float32)
    pixels = paper + ink * (pen - paper)
    labels = PatchLabels(codes, np.zeros((GRID, GRID), np.uint8))
    return pixels.astype(np.uint8), labels


def draw_bar(
    pixels: NDArray[np.uint8],
    labels: PatchLabels,
    row: int,
    first_patch: int,
    length: int,
    colour: tuple[int, int, int],
) -> None:
    """A horizontal bar of `length` pixels on text line `row`; changes pixels and labels."""
    left, top = first_patch * PATCH, row * PATCH
    pixels[top + 2 : top + PATCH - 1, left : left + length] = colour
    labels.characters[row, 2 * first_patch : 2 * first_patch + -(-length // 6)] = NOT_TEXT


def _shape_mask(shape: str, radius: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[-PATCH:PATCH, -PATCH:PATCH] + 0.5
    distance = np.hypot(x, y)
    if shape == "circle":
        return distance < radius
    if shape == "ring":
        return (distance < radius) & (distance > 0.55 * radius)
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.88 * radius
    if shape == "diamond":
        return abs(x) + abs(y) < 1.1 * radius
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.3 * radius) & (np.maximum(abs(x), abs(y)) < radius)
    return (abs(x) < 0.55 * (y + radius)) & (y < 0.8 * radius)  # triangle


def draw_shapes(
    placed: list[tuple[int, int, str, str]], rng: Random
) -> tuple[NDArray[np.uint8], PatchLabels]:
    """Shapes as (patch row, patch column, colour, shape), each on the 2 x 2 patches from there.

    So small on purpose: every patch then shows an outline, not only a fill colour.
    """
    shade = rng.randint(232, 255)
    pixels = np.full((SIDE, SIDE, 3), shade, np.uint8)
    characters = np.zeros((LINES, COLUMNS), np.uint8)
    classes = np.zeros((GRID, GRID), np.uint8)
    names = list(COLOURS)
    for row, column, colour, shape in placed:
        top, left = row * PATCH, column * PATCH
        tint = [min(255, max(0, value + rng.randint(-12, 12))) for value in COLOURS[colour]]
        region = pixels[top : top + 2 * PATCH, left : left + 2 * PATCH]
        region[_shape_mask(shape, rng.randint(9, 11))] = tint
        kind = 1 + names.index(colour) * len(SHAPES) + SHAPES.index(shape)
        classes[row : row + 2, column : column + 2] = kind
        characters[row : row + 2, 2 * column : 2 * column + 4] = NOT_TEXT
    return pixels, PatchLabels(characters, classes)
