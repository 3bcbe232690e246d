"""Targets of one model share a lock: what one attaches is never met by another one's forward."""

import gc
import threading
import time
import weakref

import pytest
import torch
from families import FAMILIES, prompt_inputs

import mmspec
from mmspec.target.forward_lock import forward_lock


def test_engines_of_one_model_in_several_threads_run_one_forward_at_a_time() -> None:
    model = FAMILIES["llama"].build(torch.float64)
    engines = [mmspec.load(model) for _ in range(3)]
    request = mmspec.Request(
        prompt_inputs(FAMILIES["llama"], "text"), seed=3, temperature=1.0, max_new_tokens=12
    )
    alone = engines[0].generate(request, speculate=True).tokens
    inside: list[int] = []
    most: list[int] = []

    def enter(*call: object) -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.001)  # others have time to come in

    def leave(*call: object) -> None:
        inside.pop()

    found: list[tuple[int, ...]] = []

    def work(engine: mmspec.Engine) -> None:
        found.append(engine.generate(request, speculate=True, reuse=False).tokens)

    hooks = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave)]
    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for hook in hooks:
        hook.remove()
    assert found == [alone] * 3
    assert len(most) >= 3 and max(most) == 1


def test_a_model_within_another_has_the_same_lock_and_no_lock_outlives_its_model() -> None:
    outer, other = (FAMILIES["llava"].build(torch.float32) for _ in range(2))
    assert forward_lock(outer) is forward_lock(outer.get_decoder())
    assert forward_lock(outer) is not forward_lock(other)
    lock = weakref.ref(forward_lock(other))
    del other
    gc.collect()
    assert lock() is None


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_whose_embeddings_are_resized_keeps_its_lock(name: str) -> None:
    model = FAMILIES[name].build(torch.float32)
    before = forward_lock(model)
    assert before is forward_lock(model.get_decoder())
    embedding = model.get_input_embeddings()
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(embedding.weight))
    assert forward_lock(model) is before
