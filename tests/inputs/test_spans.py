"""Runs of placeholder tokens are found, whatever the config calls their ids."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlavaConfig, PreTrainedConfig, Qwen2VLConfig

from mmspec.inputs import find_spans
from mmspec.state import MediaSpan

QWEN = Qwen2VLConfig(image_token_id=7, video_token_id=8)


@pytest.mark.parametrize(
    ("config", "ids", "expected"),
    [
        (QWEN, [1, 7, 7, 2, 8, 8, 8], [("image", 1, 3), ("video", 4, 7)]),
        (QWEN, [7, 8, 7], [("image", 0, 1), ("video", 1, 2), ("image", 2, 3)]),
        (QWEN, [1, 2, 3], []),
        (LlavaConfig(image_token_index=7), [7, 7], [("image", 0, 2)]),
        (LlamaConfig(), [7, 8, 9], []),
        (PreTrainedConfig(image_token_id=None), [7], []),
        (PreTrainedConfig(image_token_id=7, video_token_id=7), [7], [("image", 0, 1)]),
    ],
)
def test_runs_are_spans(
    config: PreTrainedConfig, ids: list[int], expected: list[tuple[str, int, int]]
) -> None:
    spans = tuple(MediaSpan(*span) for span in expected)  # type: ignore[arg-type]
    assert find_spans(torch.tensor(ids), config) == spans


@given(ids=st.lists(st.integers(5, 9), max_size=30))
def test_spans_cover_exactly_the_placeholders_in_order(ids: list[int]) -> None:
    spans = find_spans(torch.tensor(ids, dtype=torch.int64), QWEN)
    covered = [index for span in spans for index in range(span.start, span.stop)]
    assert covered == [index for index, one in enumerate(ids) if one in (7, 8)]
    assert all(len({ids[index] for index in range(span.start, span.stop)}) == 1 for span in spans)
