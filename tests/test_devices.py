"""What is computed in float64 is computed where there is such a thing."""

import torch

from mmspec.devices import with_float64


def test_devices_without_float64_leave_it_to_the_cpu() -> None:
    asked = ["cpu", "cuda:1", "mps", "xpu:0"]
    assert [str(with_float64(place)) for place in asked] == ["cpu", "cuda:1", "cpu", "cpu"]
    assert with_float64(torch.device("cuda")) == torch.device("cuda")
