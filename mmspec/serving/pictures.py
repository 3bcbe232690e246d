"""Pictures: the opened media of all requests, which are far larger than what was sent."""

import asyncio
from collections.abc import Mapping

from mmspec.requests import Request
from mmspec.serving.allowance import Allowance
from mmspec.serving.settings import ServerSettings
from mmspec.state import Prompt

_OPENED_TOGETHER = 4  # requests whose media are opened at a time: what each takes shows later


class Pictures:
    """In one event loop."""

    def __init__(self, settings: ServerSettings) -> None:
        told = "too many images and videos are under way already"
        self.allowance = Allowance(settings.max_held_pixels, told=told)
        self.opening = asyncio.Semaphore(_OPENED_TOGETHER)


def has_media(request: Request) -> bool:
    """Of a request that is yet to be prepared: whether a message holds more than text."""
    if isinstance(request.prompt, str | Prompt | Mapping):
        return False
    contents = (message.get("content") for message in request.prompt)
    parts = (part for content in contents if isinstance(content, list) for part in content)
    return any(part.get("type") != "text" for part in parts)


def num_pixels(prompt: Prompt) -> int:
    """Of the images and frames that a processed prompt holds."""
    frames = (frame for video in prompt.videos for frame in video)
    return sum(image.width * image.height for image in (*prompt.images, *frames))
