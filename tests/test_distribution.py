"""Sampling is transformers' own: the same processed distribution at every place of a text."""

from typing import Any

import pytest
import torch
from families import FAMILIES, prompt_inputs
from transformers import LogitsProcessor

import mmspec

NEW_TOKENS = 12
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.7},
    {"temperature": 1.3, "top_k": 9, "repetition_penalty": 1.3},
    {"top_p": 0.6, "top_k": 0},
    {"min_p": 0.1, "top_k": 0, "temperature": 0.9},
    {"min_new_tokens": 5, "top_k": 20, "top_p": 0.95},
)


class Seen(LogitsProcessor):
    """Records the scores as they are after all processors before it."""

    def __init__(self) -> None:
        self.scores: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores.append(scores[0].clone())
        return scores


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_each_token_is_drawn_from_transformers_processed_scores(settings: dict[str, Any]) -> None:
    model = FAMILIES["llama"].build(torch.float64)
    inputs = prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=20)
    engine = mmspec.load(model)
    row = engine._row(
        mmspec.Request(inputs, do_sample=True, max_new_tokens=NEW_TOKENS, seed=4, **settings), 0
    )
    ours = Seen()
    row.sampler.processors.append(ours)  # after the warpers: what the choice is made of
    for _ in engine._decode([row]):
        pass

    # transformers' generate, led along our text: its scores at each place of it.

    prompt_length = inputs["input_ids"].shape[1]
    for place in range(row.num_chosen):
        prefix = torch.tensor([row.tokens[: prompt_length + place]])
        options = {k: v for k, v in settings.items() if k != "min_new_tokens"}
        if "min_new_tokens" in settings and place < settings["min_new_tokens"]:
            options["min_new_tokens"] = 1
        output = model.generate(
            input_ids=prefix,
            attention_mask=torch.ones_like(prefix),
            do_sample=True,
            max_new_tokens=1,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
        expected = torch.softmax(output.scores[0][0].double(), 0)
        found = torch.softmax(ours.scores[place].double(), 0)
        error = float((expected - found).abs().max())
        assert error < 1e-6, f"token {place}: probabilities differ by {error}"


def test_the_seeds_draw_from_that_distribution() -> None:
    """Chi-square of the second token over seeds, given the first, against its softmax."""
    model = FAMILIES["llama"].build(torch.float64)
    inputs = prompt_inputs(FAMILIES["llama"], "text", num_text_tokens=20)
    engine = mmspec.load(model)
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 4, "max_new_tokens": 2}
    first_tokens = [
        engine.generate(inputs, seed=seed, **{**options, "max_new_tokens": 1}).tokens[0]
        for seed in range(400)
    ]
    with torch.no_grad():
        logits = model(inputs["input_ids"]).logits[0, -1]
    top = torch.topk(logits, 4)
    expected = torch.softmax(top.values, 0) * len(first_tokens)
    counts = torch.tensor([first_tokens.count(int(token)) for token in top.indices])
    assert int(counts.sum()) == len(first_tokens), "a token outside of the top 4 was drawn"
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 16.3, f"chi-square {chi_square} with 3 degrees of freedom (p < 0.001)"
