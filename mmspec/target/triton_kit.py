"""kit_on: the kernels for a model's GPU, tried once, and its tilings, measured once."""

import logging
import subprocess

import torch
from transformers import PreTrainedModel

from mmspec.target.kernels.norm import add_norm
from mmspec.target.triton_parts import TritonKit

logger = logging.getLogger(__name__)
# Triton compiles a launcher with the system's C compiler, and kernels with its own assembler.
_FAILURES = (RuntimeError, OSError, ImportError, ValueError, subprocess.CalledProcessError)


def kit_on(model: PreTrainedModel, device: torch.device) -> TritonKit | None:
    """None, with a warning, where Triton does not run on the device."""
    try:
        states = torch.ones(1, 1, 16, device=device)
        add_norm(states, None, states.flatten(), epsilon=1e-6)
    except _FAILURES as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning(
            "%s: Triton does not run on %s (%s); blocks are computed by the model's own forward, "
            "which is slower",
            type(model).__name__,
            device,
            reason,
        )
        return None
    return TritonKit()
