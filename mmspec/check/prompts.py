"""Prompts for a check that was given none: answers that copy, so that drafts are accepted, and
ones that do not; short and long, so that a batch is ragged; pictures where the model takes them."""

from PIL import Image, ImageDraw

from mmspec.errors import InputError
from mmspec.inputs import InputProcessor
from mmspec.requests import Request

_NOTE = (
    "The harbour office opens at seven on weekdays and at nine on Sundays. Boats longer than "
    "twelve metres need a permit, which costs 45 crowns a day. The permit for boats longer than "
    "twelve metres is sold at the harbour office, and the harbour office keeps a list of them."
)
_CODE = (
    "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n"
)
TEXTS = (
    f"Repeat this text word by word: {_NOTE}",
    "Name the seasons.",
    f"Rewrite this function so that it returns 0 for an empty list:\n\n{_CODE}",
    f"{_NOTE}\n\nWhat does a permit cost, and where is it sold? Quote the sentences.",
)
PICTURE_TEXTS = ("Describe the picture.", "Which shapes and colours are in the picture? List all.")
_SIDE = 224  # pixels


def default_requests(inputs: InputProcessor) -> list[Request]:
    """The texts above; for a model that takes images two of them with a generated picture."""
    requests = [Request(text) for text in TEXTS]
    for index, text in enumerate(PICTURE_TEXTS):
        request = Request(text, images=picture(index))
        try:
            inputs.encode(text, images=request.images)
        except InputError:  # a text-only model
            return requests
        requests.insert(2 * index, request)
    return requests


def picture(index: int) -> Image.Image:
    """Some coloured shapes on white, another arrangement for each index."""
    image = Image.new("RGB", (_SIDE, _SIDE), "white")
    draw = ImageDraw.Draw(image)
    colours = ("red", "green", "blue", "orange", "purple")
    for number, colour in enumerate(colours):
        left = 12 + (number * 83 + index * 47) % 150
        top = 12 + (number * 59 + index * 71) % 150
        box = (left, top, left + 50, top + 50)
        (draw.ellipse if (number + index) % 2 else draw.rectangle)(box, fill=colour)
    return image
