"""A head is computed where its target's is, and a user's own module stays as it was."""

import torch
from matrix import model_of
from torch import nn

from mmspec.drafters.heads import TargetEnds, placed
from mmspec.target import Target


def test_a_head_of_which_a_part_has_another_dtype_is_copied_as_a_whole() -> None:
    ends = TargetEnds(Target(model_of("llama", "float64")))
    head = nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2))
    made = placed(head, ends, torch.float64)
    assert {weight.dtype for weight in made.parameters()} == {torch.float64}
    assert head[1].weight.dtype == torch.float32, "the user's module was changed"
    assert placed(made, ends, torch.float64) is made, "nothing to copy"
