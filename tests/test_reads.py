"""Tensors of any kind, read together."""

import torch

from mmspec.reads import read


def test_values_come_back_as_they_are() -> None:
    pairs = torch.tensor([[2**53 + 1, 5], [7, -1]])
    tensors = [
        torch.tensor([True, False, True]),  # what comes next lies at no multiple of its size
        torch.tensor(3),
        pairs,
        pairs[:, 0],
        pairs[:1, 0],
        torch.tensor([0.1, -torch.inf], dtype=torch.float64),
        torch.tensor([[1.5], [2.5]], dtype=torch.bfloat16),
        torch.empty(2, 0),
        torch.ones(1, 1).expand(2, 3),
    ]
    assert read(*tensors) == [tensor.tolist() for tensor in tensors]
    assert read() == []


def test_a_nan_stays_one() -> None:
    ((value,),) = read(torch.tensor([torch.nan]))
    assert value != value
