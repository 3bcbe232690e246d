"""A round through transformers' own generate: the same texts with and without mmspec's loop."""

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from families import FAMILIES, layouts_of
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

import mmspec
from mmspec.engine import Engine

from .cases import MARKS, Inputs, draw_prompt
from .report import Report, may_refuse
from .steering import Parity, StopsAfter, allowed_tokens


class Columns(BaseStreamer):
    """What a streamer is told."""

    def __init__(self) -> None:
        self.put_so_far: list[Tensor] = []
        self.has_ended = False

    def put(self, value: Tensor) -> None:
        self.put_so_far.append(value)

    def end(self) -> None:
        self.has_ended = True


def played_through(
    draw: random.Random,
    drafters: Sequence[Any],
    plain: Engine,
    family: str,
    report: Report,
) -> Iterator[str]:
    model = plain.target.model
    prompts = _prompts(draw, family)
    lengths = [prompt["input_ids"].shape[1] for prompt in prompts]
    options = _options(draw)
    is_greedy = draw.random() < 0.6
    samples = draw.choice([1, 1, 2, 3])
    seed = draw.randrange(100)
    if is_greedy:
        samples = 1
    else:
        options |= {"do_sample": True, "temperature": 0.9, "top_k": draw.choice([0, 20])}
    kept = draw.choice([{}, {"output_scores": True, "output_logits": True}])
    if kept:
        kept["return_dict_in_generate"] = True
    streamer = Columns() if samples == 1 and draw.random() < 0.3 else None
    report.title += f" {lengths} {options} samples {samples} seed {seed}"
    batch = _batch(prompts)
    longest = max(lengths)
    before = copy.deepcopy(model.generation_config)
    with may_refuse():  # without a processor there, a drafter may be refused
        told = model.generate(
            **_as_model(batch, model),
            custom_generate=mmspec.custom_generate,
            drafter=list(drafters),
            controller="fixed",
            max_nodes=draw.choice([3, 20]),
            seed=seed,
            num_return_sequences=samples,
            streamer=streamer,
            **kept,
            **_made(options),
        )
    got = told.sequences if kept else told
    if model.generation_config != before:
        yield "the model's generation_config was changed"
    new = got[:, longest:]
    report.tokens += new.numel()
    report.requests += new.shape[0]
    if kept and not len(told.scores) == len(told.logits) == new.shape[1]:
        yield f"{len(told.scores)} scores, {len(told.logits)} logits of {new.shape[1]} tokens"
    if streamer is not None:
        # The prompt first, then a column at a time.
        columns = torch.stack(streamer.put_so_far[1:], dim=1)
        if not streamer.has_ended or not torch.equal(columns, new):
            yield f"streamed {columns.tolist()} of {new.tolist()}"
    for row in range(new.shape[0]):
        prompt = prompts[row // samples]
        if is_greedy:
            wanted = model.generate(**_as_model(prompt, model), **_made(options))[0]
            wanted = wanted[prompt["input_ids"].shape[1] :].tolist()
        else:
            wanted = _sampled(plain, prompt, options, seed + row // samples, row % samples)
        said, padding = new[row, : len(wanted)].tolist(), new[row, len(wanted) :]
        if said != wanted or bool(padding.any()):
            yield f"row {row} through transformers: {new[row].tolist()}, expected {wanted}"


def _prompts(draw: random.Random, family: str) -> list[Inputs]:
    """One with media, several with one image each, or several of text."""
    kind = draw.choice(["text", "one", "images"])
    if kind == "text" or FAMILIES[family].kind == "text":
        return [draw_prompt(draw, family, layout="text") for _ in range(draw.randint(1, 3))]
    layouts = layouts_of(FAMILIES[family])
    if kind == "one" or family == "mllama":  # its images are one prompt's alone
        return [draw_prompt(draw, family, layout=draw.choice(layouts))]
    single = [name for name in layouts if name.startswith("image") or name == "audio"]
    return [draw_prompt(draw, family, layout=draw.choice(single)) for _ in range(2)]


def _batch(prompts: Sequence[Inputs]) -> Inputs:
    """Padded on the left; media one behind the other."""
    longest = max(prompt["input_ids"].shape[1] for prompt in prompts)

    def padded(value: Tensor) -> Tensor:
        missing = longest - value.shape[1]
        return torch.cat([value.new_zeros(1, missing, *value.shape[2:]), value], dim=1)

    names = {name for prompt in prompts for name in prompt}
    return {
        name: torch.cat(
            [
                padded(prompt[name]) if name in ("input_ids", *MARKS) else prompt[name]
                for prompt in prompts
            ]
        )
        for name in names
    }


def _as_model(inputs: Inputs, model: PreTrainedModel) -> Inputs:
    return {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
    }


def _options(draw: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": draw.choice([1, 7, 16])}
    if draw.random() < 0.4:
        options["eos_token_id"] = draw.sample(range(3, 90), 12)
    for name, values in (
        ("repetition_penalty", (1.3,)),
        ("no_repeat_ngram_size", (2, 3)),
        ("min_new_tokens", (4,)),
        ("suppress_tokens", ([5, 9, 14],)),
        ("logits_processor", ([Parity()],)),
        ("stopping_criteria", ([StopsAfter(7)],)),
        ("prefix_allowed_tokens_fn", (allowed_tokens,)),
    ):
        if draw.random() < 0.2:
            options[name] = draw.choice(values)
    return options


def _made(options: dict[str, Any]) -> dict[str, Any]:
    """`generate` puts its own into a list that it is given."""
    return {n: list(v) if isinstance(v, list) else v for n, v in options.items()}


def _sampled(
    plain: Engine, prompt: Inputs, options: dict[str, Any], seed: int, sample: int
) -> list[int]:
    named = _made(options)
    config = copy.deepcopy(plain.target.model.generation_config)
    for name in ("no_repeat_ngram_size", "suppress_tokens"):
        if name in named:
            setattr(config, name, named.pop(name))
    if "logits_processor" in named:
        named["logits_processors"] = named.pop("logits_processor")
    return list(
        plain.generate(prompt, seed=seed, sample=sample, generation_config=config, **named).tokens
    )
