"""What a decode step tells a GPU to do beside its graph: each launch takes some microseconds of
the device, and what is told before the graph also of the step."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pretend
import pytest
import torch
from families import FAMILIES, prompt_inputs
from matrix import letters
from pretend.device import Launch
from test_waits import SAMPLINGS, lookup

import mmspec
from mmspec import decoder
from mmspec.config import CacheConfig, Config, DecodeConfig
from mmspec.drafters.draft_model import DraftModel
from mmspec.requests import Request

pytest.importorskip("triton", reason="needs triton")

# name -> what is drafted with, given the model on the device
DRAFTERS: Mapping[str, Callable[[Any], list[Any]]] = {
    "plain": lambda model: [],
    "lookup": lambda model: [lookup()],
    "draft": lambda model: [DraftModel(model, letters(), top_k=1, min_confidence=0.0, max_depth=3)],
}
SLOW = pytest.mark.slow  # half a minute each, as each operation and each kernel goes by Python


def launches_of(drafter: str, sampling: str, *, rows: int = 1) -> list[list[Launch]]:
    """Of each step in which nothing was recorded."""
    with pretend.device() as device, pytest.MonkeyPatch.context() as patch:
        model = FAMILIES["llama"].build(torch.float32).to("cuda")
        config = Config(
            decode=DecodeConfig(max_nodes=8, max_rows=rows, controller="fixed"),
            cache=CacheConfig(prefix_bytes=0),
        )
        engine = mmspec.load(model, letters(), config=config, drafter=DRAFTERS[drafter](model))
        begun, propose = list[tuple[int, int]](), decoder.propose

        def noted_propose(*args: Any) -> Any:
            begun.append((len(device.launches), engine.graph_info.recorded))
            return propose(*args)

        patch.setattr(decoder, "propose", noted_propose)
        requests = [
            Request(
                prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=length, seed=length),
                max_new_tokens=6 if drafter == "plain" else 16,
                seed=5,
                ignore_eos=True,
                **SAMPLINGS[sampling],
            )
            for length in (30, 17, 23, 27)[:rows]
        ]
        engine.generate(requests)
        begun.append((len(device.launches), engine.graph_info.recorded))
        steps = [device.launches[a:b] for (a, made), (b, later) in pairwise(begun) if made == later]
    return [step for step in steps if any(launch.what == "graph" for launch in step)]


@pytest.mark.parametrize(
    ("drafter", "sampling", "rows", "most"),
    [
        ("plain", "greedy", 1, 6),
        pytest.param("plain", "t1", 1, 8, marks=SLOW),
        pytest.param("plain", "warped", 1, 30, marks=SLOW),
        pytest.param("plain", "greedy", 4, 7, marks=SLOW),
        pytest.param("plain", "t1", 4, 9, marks=SLOW),
        pytest.param("lookup", "greedy", 1, 6, marks=SLOW),
        pytest.param("draft", "greedy", 1, 30, marks=SLOW),  # eight a forward of the draft's
    ],
)
def test_a_step_launches_little_beside_its_graph(
    drafter: str, sampling: str, rows: int, most: int
) -> None:
    steps = launches_of(drafter, sampling, rows=rows)
    assert steps, "nothing was replayed"
    largest = max(steps, key=len)
    shown = "\n".join(map(str, largest))
    assert len(largest) <= most, f"{len(largest)} launches, expected at most {most}:\n{shown}"
