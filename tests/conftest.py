"""What holds for every test: no network, one thread, fixed seeds."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # in the processes that tests start, too

import random
import socket
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before a kernel is defined

torch.set_num_threads(1)  # sums in one order; the models here are too small for more
hypothesis.settings.register_profile("mmspec", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("mmspec")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")
    parser.addoption(
        "--pretend-cuda",
        action="store_true",
        help="run the tests marked gpu on a pretended CUDA device (tests/pretend)",
    )
    parser.addoption(
        "--compiled",
        choices=["early", "late"],
        help="run Triton's kernels as compiled for a GPU, by a machine of ours (tests/ptx), and "
        "not interpreted; what may come early or late there comes so",
    )
    parser.addoption("--capability", type=int, default=90, help="of that GPU; 90: H100, H200")


def pytest_configure(config: pytest.Config) -> None:
    if when := config.getoption("--compiled"):
        from ptx.launch import compile_kernels

        compile_kernels(config.getoption("--capability"), is_late=when == "late")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    skip_gpu = pytest.mark.skip(reason="needs a CUDA device")
    skip_slow = pytest.mark.skip(reason="takes minutes; run with --slow")
    for item in items:
        gpu = item.get_closest_marker("gpu")
        may_pretend = config.getoption("--pretend-cuda") and not (gpu and gpu.kwargs.get("real"))
        if gpu and not torch.cuda.is_available() and not may_pretend:
            item.add_marker(skip_gpu)
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(skip_slow)


@pytest.fixture(autouse=True)
def cuda(request: pytest.FixtureRequest) -> Iterator[None]:
    """For tests that need CUDA, a pretended device where there is none and one is asked for."""
    if "gpu" in request.keywords and request.config.getoption("--pretend-cuda"):
        import pretend

        with pretend.device():
            yield
    else:
        yield


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_drafter_fails(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """A drafter that fails is left out, and the text is the same: a test that looks at texts would
    not see it. Where one is meant to fail the test is marked `drafter_fails`."""
    yield
    failures = [r.getMessage() for r in caplog.get_records("call") if r.name == "mmspec.drafting"]
    assert not failures or "drafter_fails" in request.keywords, failures


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connecting to anything but this machine fails at once."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        is_local = self.family == getattr(socket, "AF_UNIX", None)
        if isinstance(address, tuple):
            is_local = address[0] in ("127.0.0.1", "::1", "localhost")
        if not is_local:
            raise AssertionError(f"a test tried to connect to {address}")
        connect(self, address)  # type: ignore[arg-type]

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", refuse)
    yield
    patch.undo()
