"""A video processor without torchvision, and a way to put it into a real processor."""

import torch
from transformers import ProcessorMixin
from transformers.video_utils import make_batched_videos


class FrameCounter:
    """Stands in for a video processor, all of which need torchvision."""

    merge_size = 2

    def __call__(self, videos: object, **_: object) -> dict[str, torch.Tensor]:
        sizes = [[len(video), 4, 4] for video in make_batched_videos(videos)]
        grid = torch.tensor(sizes)
        pixels = torch.zeros(int(grid.prod(dim=1).sum()), 8)
        return {"pixel_values_videos": pixels, "video_grid_thw": grid}


def with_video(
    kind: type[ProcessorMixin], *, video_processor: object, **parts: object
) -> ProcessorMixin:
    """A processor with any object as its video processor."""
    check = kind.check_argument_for_proper_class

    class AnyVideo(kind):
        def check_argument_for_proper_class(self, name: str, part: object) -> object:
            return None if name == "video_processor" else check(self, name, part)

    AnyVideo.__name__ = kind.__name__
    return AnyVideo(video_processor=video_processor, **parts)
