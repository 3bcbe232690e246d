"""Linear biases (ALiBi): a node's go by its depth, whatever slot its key lies in."""

from threading import Thread

import pytest
import torch
from families import FAMILIES
from transformers import BloomConfig, BloomForCausalLM, PreTrainedModel

from mmspec.kv import WritePlan
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.target.biases import SlotBiases
from mmspec.target.masks import MaskRule, nodes_of
from mmspec.target.probe import probe
from mmspec.tree import TokenTree

#        0:40
#       /  |  \
#     41  42  43      43 stands in the third slot behind 40, one token after it
#      |       |
#     44      45
#              |
#             46
TREE = TokenTree((40, 41, 42, 43, 44, 45, 46), (-1, 0, 0, 0, 1, 3, 5), (1.0,) * 7, ("", *"aaaaaa"))
RULE = MaskRule(("full_attention",), None, None, as_dict=False)


def six_heads() -> PreTrainedModel:
    """Their slopes are of two series."""
    config = BloomConfig(vocab_size=112, hidden_size=96, n_layer=2, n_head=6)
    torch.manual_seed(3)
    model = BloomForCausalLM._from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.ndim > 1 else 1)
    return model


@pytest.mark.parametrize("heads", [4, 6])
def test_a_nodes_logits_are_those_of_its_path(heads: int) -> None:
    model = FAMILIES["bloom"].build(torch.float64) if heads == 4 else six_heads()
    target, cache = Target(model), Target(model).new_cache()
    texts = [torch.arange(20, 20 + length) for length in (40, 3, 17)]
    places = [target.prefill(Prompt(t), cache, cache.open(50)).placement for t in texts]
    trees = [TREE, TREE, TokenTree.chain(40, [41, 42], [0.9, 0.9], "a")]
    scores = target.score(trees, cache, places)
    for text, tree, score in zip(texts, trees, scores, strict=True):
        for node in range(tree.num_nodes):
            path = torch.tensor([tree.tokens[n] for n in tree.path_to(node)])
            with torch.no_grad():
                expected = model(torch.cat([text, path]).unsqueeze(0)).logits[0, -1]
            error = float((score.logits[node] - expected).abs().max() / expected.std())
            assert error < 1e-5, f"node {node} behind {len(text)} tokens: off by {error:.2g}"


def test_only_what_stands_elsewhere_is_moved() -> None:
    """A chain's mask stays as it is, and so do the columns of the text and of the first nodes."""
    biases = SlotBiases.of(FAMILIES["bloom"].build(torch.float32))
    assert biases is not None
    chain = TokenTree.chain(40, [41, 42], [0.9, 0.9], "a")
    rows = nodes_of([chain], WritePlan([0], [5], [3]), [0])
    mask = RULE.build(rows, torch.float32)
    assert biases.by_depth(mask, rows) is mask
    rows = nodes_of([TREE], WritePlan([0], [5], [7]), [0])
    mask = RULE.build(rows, torch.float32)
    assert isinstance(mask, torch.Tensor)
    moved = biases.by_depth(mask, rows)
    assert moved.shape == (1, 4, 7, 12)
    assert torch.equal(moved[..., :7], mask[..., :7].expand(1, 4, 7, 7))
    seen = (moved - mask)[0, :, 6, [8, 10, 11]]  # of node 6: its ancestors 3 and 5, and itself
    assert (seen < 0).all() and (seen[:, 1] < seen[:, 0]).all(), "the deeper, the further back"


def test_a_forward_of_another_thread_makes_its_own_mask() -> None:
    """And the model is as it was found, after an error too."""
    model = FAMILIES["bloom"].build(torch.float64)
    biases, ids = SlotBiases.of(model), torch.arange(30, 42).unsqueeze(0)
    assert biases is not None
    own, said = model.config._attn_implementation, []
    with torch.no_grad():
        expected = model(ids).logits

    def ask() -> None:
        with torch.no_grad():
            said.append(model(ids).logits)

    with pytest.raises(KeyError), biases.told(torch.zeros(1, 1, 12, 12).double()):
        thread = Thread(target=ask)
        thread.start()
        thread.join()
        raise KeyError
    assert torch.equal(said[0], expected)
    assert model.config._attn_implementation == own
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)


def test_mpt_scores_a_path_and_no_more_than_its_context() -> None:
    target, report = probe(FAMILIES["mpt"].build(torch.float64))
    assert report.shape == "chain"
    assert target.max_positions == 2048
