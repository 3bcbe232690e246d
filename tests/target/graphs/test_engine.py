"""Graphs in an engine: they outlive a request, and a user can see and switch them off."""

import warnings

import pytest
from graphed import graphed
from matrix import _engine, _lookup, model_of
from ragged import requests_of

import mmspec
from mmspec.errors import ConfigError


def test_a_request_uses_the_graphs_of_the_ones_before() -> None:
    requests = requests_of("llama", {"temperature": 0.0}, ["text"] * 3)
    expected = _engine("llama", "float64", 8, [_lookup()]).generate(requests)
    with graphed():
        engine = _engine("llama", "float64", 8, [_lookup()])
        for _ in range(3):
            results = engine.generate(requests)
            assert [r.tokens for r in results] == [r.tokens for r in expected]
        before = engine.graph_info
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine.generate(requests)
        after = engine.graph_info
        assert before is not None and after is not None
        assert after.recorded == before.recorded and after.eager == before.eager
        assert after.replayed > before.replayed
        engine.clear_cache()
        assert engine.graph_info is not None and engine.graph_info.num_graphs == 0
        assert [r.tokens for r in engine.generate(requests)] == [r.tokens for r in expected]


def test_on_a_cpu_nothing_is_recorded() -> None:
    engine = _engine("llama", "float64", 8, [])
    assert engine.graph_info is None


@pytest.mark.parametrize("key", ["decode.cuda_graphs", "decode.early_begin"])
def test_an_unknown_value_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}='on': expected one of auto, never"):
        mmspec.load(model_of("llama", "float64"), overrides={key: "on"})
