"""The probe: a model that does not do what it is told about masks and positions is found out."""

from typing import NamedTuple

import pytest
import torch
from families import FAMILIES, REFUSED
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3_5ForConditionalGeneration,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmspec.errors import ModelError
from mmspec.kv import KVCache
from mmspec.state import Prompt
from mmspec.target import Target
from mmspec.target.probe import ProbeReport, probe
from mmspec.target.weight_state import WeightState
from mmspec.tree import TokenTree


class Given(NamedTuple):
    """What a forward is told."""

    ids: Tensor  # (batch, seq)
    mask: Tensor | None
    positions: Tensor | None
    cache: Cache


class Bent(LlamaForCausalLM):
    """Takes what it is told for something else."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        past_key_values: Cache,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        given = self.taken(Given(input_ids, attention_mask, position_ids, past_key_values))
        output = super().forward(
            input_ids=given.ids,
            attention_mask=given.mask,
            position_ids=given.positions,
            past_key_values=given.cache,
            **kwargs,
        )
        return self.said(output)

    def taken(self, given: Given) -> Given:
        return given

    def said(self, output: CausalLMOutputWithPast) -> CausalLMOutputWithPast:
        return output


class IgnoresMask(Bent):
    """Attends to all that came before, whatever mask it is given."""

    def taken(self, given: Given) -> Given:
        return given._replace(mask=None)


class CountsSlots(Bent):
    """Numbers its tokens in the order in which they come, whatever positions it is given."""

    def taken(self, given: Given) -> Given:
        start = given.cache.get_seq_length()
        slots = torch.arange(start, start + given.ids.shape[1])
        return given._replace(positions=slots.expand(given.ids.shape))


class LooksAtSiblings(Bent):
    """Takes the mask as one of a text: whoever comes later sees all that those before him saw."""

    def taken(self, given: Given) -> Given:
        if given.mask is None or given.mask.dim() != 4:
            return given
        return given._replace(mask=given.mask.cummax(dim=2).values)


class CountsNodes(Bent):
    """Believes the first position that it is given, and counts on from there."""

    def taken(self, given: Given) -> Given:
        if given.positions is None:
            return given
        counted = given.positions[:, :1] + torch.arange(given.ids.shape[1])
        return given._replace(positions=counted)


class TakesOneToken(Bent):
    """Fails when several tokens come after a prompt, as a fixed decoding graph would."""

    def taken(self, given: Given) -> Given:
        if given.cache.get_seq_length() and given.ids.shape[1] > 1:
            raise ValueError("one token at a time")
        return given


class KnowsOneCache(Bent):
    """Forgets all but the present tokens, unless the cache is transformers' own."""

    def taken(self, given: Given) -> Given:
        if isinstance(given.cache, DynamicCache):
            return given
        return given._replace(positions=torch.zeros_like(given.ids))


class SaysNaN(Bent):
    """Overflows in the tree's mask, and only there."""

    def said(self, output: CausalLMOutputWithPast) -> CausalLMOutputWithPast:
        if output.logits is not None and output.logits.shape[1] == 5:
            output.logits[:, -1] = torch.nan
        return output


class AsksForMore(Qwen3_5ForConditionalGeneration):
    """Asks a cache that is not transformers' own for what it cannot have."""

    asked = "what_no_cache_has"

    def forward(self, past_key_values: Cache | None = None, **kwargs: object) -> object:
        if not isinstance(past_key_values, DynamicCache):
            getattr(past_key_values, self.asked)
        return super().forward(past_key_values=past_key_values, **kwargs)


def bent(model_class: type[LlamaForCausalLM]) -> PreTrainedModel:
    """The tiny llama, with another forward."""
    model = FAMILIES["llama"].build(torch.float64)
    model.__class__ = model_class
    return model


def probed(model_class: type[LlamaForCausalLM]) -> ProbeReport:
    return probe(bent(model_class))[1]


# LAW


def test_a_model_that_obeys_scores_trees() -> None:
    target, report = probe(FAMILIES["llama"].build(torch.float64))
    assert isinstance(target, Target)
    assert report.shape == "tree"
    assert report.error < 1e-9 < report.tolerance


@pytest.mark.parametrize("model_class", [LooksAtSiblings, CountsNodes, SaysNaN])
def test_a_model_that_is_right_on_a_path_only_gets_chains(
    model_class: type[LlamaForCausalLM],
) -> None:
    assert probed(model_class).shape == "chain"


@pytest.mark.parametrize("model_class", [IgnoresMask, CountsSlots])
def test_a_model_that_is_wrong_in_a_ragged_batch_is_refused(
    model_class: type[LlamaForCausalLM],
) -> None:
    with pytest.raises(ModelError):
        probed(model_class)


def test_a_model_that_takes_one_token_at_a_time_is_decoded_plainly() -> None:
    assert probed(TakesOneToken).shape == "plain"


def test_a_model_that_is_wrong_on_every_shape_is_refused_with_what_was_seen() -> None:
    with pytest.raises(ModelError) as refusal:
        probed(KnowsOneCache)
    message = str(refusal.value)
    assert message.startswith("KnowsOneCache cannot be decoded")
    for shape in ("tree: off by", "chain: off by", "plain: off by"):
        assert shape in message


def test_a_model_whose_dropout_is_on_is_told_to_leave_training() -> None:
    model = FAMILIES["gpt2"].build(torch.float32).train()
    trained = WeightState.of(model)
    with pytest.raises(ModelError, match=r"logits differ .* call model\.eval\(\)"):
        probe(model)
    assert probe(model.eval())[1].shape == "tree"
    assert WeightState.of(model) != trained == WeightState.of(model.train())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("falcon_alibi", "from a 2-D attention_mask alone"),
    ],
)
def test_refused_families_are_refused_with_the_reason(name: str, reason: str) -> None:
    model = REFUSED[name].build(torch.float64)
    for refuse in (Target, probe):
        with pytest.raises(ModelError, match=reason) as refusal:
            refuse(model)
        assert type(model).__name__ in str(refusal.value)
        assert "Use transformers' generate" in str(refusal.value), "it says what to do instead"


def test_every_refused_family_is_tested() -> None:
    assert REFUSED.keys() == {"falcon_alibi"}


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_probing_leaves_no_rope_delta_behind(name: str) -> None:
    model = FAMILIES[name].build(torch.float64)
    kept = [module for module in model.modules() if hasattr(module, "rope_deltas")]
    assert kept, "this family keeps one"
    theirs = torch.tensor([[-7]])
    kept[0].rope_deltas = theirs
    _, report = probe(model)
    assert kept[0].rope_deltas is theirs
    assert report.shape == "tree", "another request's delta must not be read either"


def test_a_model_that_fails_while_its_mixers_are_looked_for_is_refused() -> None:
    """Not with the error itself, which says nothing of what was tried."""
    model = FAMILIES["qwen3_5"].build(torch.float64)
    model.__class__ = AsksForMore
    with pytest.raises(ModelError, match=r"AttributeError: .*what_no_cache_has") as refusal:
        probe(model)
    message = str(refusal.value)
    assert message.startswith("AsksForMore cannot be decoded")
    assert "Use transformers' generate" in message


# ORACLE


@pytest.mark.parametrize("name", FAMILIES)
def test_every_decodable_family_scores_what_it_can(name: str) -> None:
    _, report = probe(FAMILIES[name].build(torch.float64))
    shape = "chain" if name == "mpt" else "tree"  # which adds biases by slot, and takes no others
    assert report.shape == shape, f"{name}: {report.shape} (error {report.error:.2g})"
    assert report.error < 1e-6, "the softmax of eager attention is float32 even here, no more"


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_rounding_is_no_reason_to_cut_trees(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _, report = probe(FAMILIES[name].build(dtype))
        assert report.shape == "tree", f"{dtype}: {report}"


@pytest.mark.parametrize(
    "model_class",
    [LlamaForCausalLM, LooksAtSiblings, CountsNodes, TakesOneToken],
)
def test_what_the_probe_lets_pass_is_right_in_a_ragged_batch(
    model_class: type[LlamaForCausalLM],
) -> None:
    model = bent(model_class)
    target, report = probe(model)
    draft = [] if report.shape == "plain" else [61, 62]
    tree = TokenTree.chain(60, draft, [0.9] * len(draft), "test")
    prompts = [Prompt(torch.arange(30, 30 + length)) for length in (12, 5, 7)]
    cache: KVCache = target.new_cache()
    places = [target.prefill(p, cache, cache.open(20)).placement for p in prompts]
    for prompt, score in zip(
        prompts, target.score([tree] * len(prompts), cache, places), strict=True
    ):
        ids = torch.cat([prompt.token_ids, torch.tensor(tree.tokens)]).unsqueeze(0)
        with torch.no_grad():
            expected = model(input_ids=ids, past_key_values=DynamicCache()).logits[0, -1]
        error = float((score.logits[-1] - expected).abs().max())
        assert error < 1e-9, f"prompt of {prompt.num_tokens} tokens: off by {error:.2g}"
