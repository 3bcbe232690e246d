"""kit_on: the kernels for a model's GPU, tried once, and its tilings, measured once."""

import logging
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from transformers import PreTrainedModel

from mmspec.kernels import raise_if_lost, shown
from mmspec.target.graphs.recorder import recorded
from mmspec.target.kernels.norm import add_norm
from mmspec.target.triton_parts import TritonKit

logger = logging.getLogger(__name__)
_REPLAYS = 5


def kit_on(
    model: PreTrainedModel, device: torch.device, *, begins_early: bool = True
) -> TritonKit | None:
    """None, with a warning, where Triton does not run on the device. `begins_early`: as of
    TritonKit."""
    try:
        states = torch.ones(1, 1, 16, device=device)
        add_norm(states, None, states.flatten(), epsilon=1e-6)
    except Exception as error:  # Triton asks the system's C compiler, and an assembler of its own
        raise_if_lost(error, device)
        logger.warning(
            "%s: Triton does not run on %s (%s); blocks are computed by the model's own forward, "
            "which is slower",
            type(model).__name__,
            device,
            shown(error),
        )
        return None
    # One stream for all measurements: for each that has multiplied cuBLAS keeps 32 MiB on Hopper.
    clock = partial(replayed_ms, device=device, stream=torch.cuda.Stream(device))
    return TritonKit(clock=clock, begins_early=begins_early)


def replayed_ms(
    run: Callable[[], object],
    device: torch.device | None = None,
    stream: torch.cuda.Stream | None = None,
) -> float:
    """Of one replay of `run` in a CUDA graph, where no time is spent on calling; the least of
    several. On the current device, or on `device`; recorded on a stream of its own, or `stream`."""
    with torch.no_grad(), torch.cuda.device(device):
        stream = stream or torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            run()  # compiles
            torch.cuda.synchronize()
            with recorded(graph, torch.cuda.graph_pool_handle(), stream.device):
                run()
        graph.replay()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(_REPLAYS + 1)]
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
        return min(a.elapsed_time(b) for a, b in pairwise(events))
