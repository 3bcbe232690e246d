"""The clock that a training's minutes are counted by."""

import time

import torch


def clock_s(device: str) -> float:
    """On a CPU processor seconds a thread, so that neither a paused nor a crowded machine shortens
    the training; on a GPU, where the processor mostly waits, plain seconds."""
    if device == "cpu":
        return time.process_time() / torch.get_num_threads()
    return time.monotonic()
