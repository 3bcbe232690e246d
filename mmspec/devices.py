"""What can be computed where."""

import torch

CPU = torch.device("cpu")


def with_float64(device: torch.device | str) -> torch.device:
    """The device, or the CPU in its place where it may have no float64: Apple's GPUs and some of
    Intel's have none."""
    place = torch.device(device)
    return place if place.type in ("cpu", "cuda") else CPU
