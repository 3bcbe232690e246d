"""The sweep: each architecture in a process of its own, with a limit of time and of memory."""

import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from mmspec.sweep.names import Architecture
from mmspec.sweep.trial import Trial, try_architecture


@dataclass(frozen=True)
class SweepLimits:
    """What one architecture may take."""

    seconds: float = 180.0
    memory_bytes: int = 6 * 2**30  # beyond what is mapped at the start; 0: no limit


_LIMITS = SweepLimits()


def sweep(chosen: Sequence[Architecture], *, limits: SweepLimits = _LIMITS) -> Iterator[Trial]:
    """Their trials, one after the other. One that takes too long, or dies, has failed; the others
    go on."""
    # A server that has imported everything once, and forks: an import takes longer than a trial.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mmspec.sweep.trial"])
    for architecture in chosen:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_try_limited, args=(architecture, sender, limits.memory_bytes), daemon=True
        )
        process.start()
        sender.close()
        try:
            if receiver.poll(limits.seconds):
                yield receiver.recv()
            else:
                yield _failed(architecture, f"took longer than {limits.seconds:g} s")
        except EOFError:
            process.join()
            yield _failed(architecture, f"its process died with exit code {process.exitcode}")
        finally:
            process.kill()
            process.join()
            receiver.close()


def _failed(architecture: Architecture, reason: str) -> Trial:
    return Trial(
        architecture.model_type, architecture.class_name, architecture.kind, "failed", reason
    )


def _try_limited(architecture: Architecture, sender: Connection, memory_bytes: int) -> None:
    import torch

    torch.set_num_threads(1)
    if memory_bytes:
        _limit_memory(memory_bytes)
    sender.send(try_architecture(architecture))
    sender.close()


def _limit_memory(num_bytes: int) -> None:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, hard))
