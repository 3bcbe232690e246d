"""Case: one request of a scenario, that can be asked many times and is made anew each time."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from families import EOS_TOKEN, FAMILIES, layouts_of, prompt_inputs
from torch import Tensor

from mmspec.inputs.passages import Passage
from mmspec.requests import Request, Result

from .steering import (
    LAST_LETTER,
    Making,
    draw_configured,
    draw_kept,
    draw_objects,
    draw_penalties,
    draw_sampling,
)

Inputs = dict[str, Tensor]
MARKS = ("attention_mask", "mm_token_type_ids", "token_type_ids", "cross_attention_mask")


@dataclass(frozen=True)
class Case:
    """`cancel_after`: its `is_wanted` says so often that it is, and then that it is not."""

    prompt: Inputs
    options: dict[str, Any]
    made: list[Making] = field(default_factory=list)
    cancel_after: int | None = None
    how: dict[str, Any] = field(default_factory=dict)  # what must change no text

    def request(self, *, plain: bool = False) -> Request:
        """`plain`: as it is asked by itself, to find out what is right."""
        options = dict(self.options)
        for make in self.made:
            options |= make()
        if plain:
            return Request(self.prompt, **{**options, "n": 1}, speculate=False)
        if self.cancel_after is not None:
            options["is_wanted"] = wanted(self.cancel_after)
        return Request(self.prompt, **{**options, **self.how})

    @property
    def samples(self) -> range:
        first = self.options.get("sample", 0)
        return range(first, first + self.options.get("n", 1))

    def __str__(self) -> str:
        ids = self.prompt["input_ids"].shape[1]
        made = [name for make in self.made for name in make()]
        return f"{ids} tokens, {self.options}, {made}, {self.how}, cancelled {self.cancel_after}"


def wanted(times: int) -> Callable[[], bool]:
    left = [times]

    def is_wanted() -> bool:
        left[0] -= 1
        return left[0] >= 0

    return is_wanted


class Reading:
    """What a request's `on_prefill` is told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []

    def __call__(self, done: int, of: int) -> None:
        self.told.append((done, of))

    def wrong(self, prompt_tokens: int, *, begun: bool) -> Iterator[str]:
        done = [each for each, _ in self.told]
        if done != sorted({*done}) or any(of != prompt_tokens for _, of in self.told):
            yield f"on_prefill was told {self.told} of {prompt_tokens} tokens"
        if begun and done[-1:] != [prompt_tokens]:
            yield f"on_prefill was told {self.told} of a prompt that was read"


def draw_prompt(
    draw: random.Random, family: str, *, most: int | None = None, layout: str | None = None
) -> Inputs:
    """`most`: tokens, where the model has few positions; then text alone."""
    chosen = FAMILIES[family]
    layout = layout or ("text" if most else draw.choice([*layouts_of(chosen), "text"]))
    few = {"video": 5, "two_images": 4, "two_audio": 4}.get(layout, 2)
    count = draw.choice([few, few + 1, draw.randint(few, 12), draw.randint(12, 40), 40])
    inputs = prompt_inputs(
        chosen,
        layout,  # type: ignore[arg-type]
        num_text_tokens=min(count, most or count),
        seed=draw.randrange(6),
        repetitive=draw.random() < 0.7,
    )
    is_short = layout == "text" and draw.random() < 0.15
    return first_tokens(inputs, draw.randint(1, 3)) if is_short else inputs


def first_tokens(inputs: Inputs, count: int) -> Inputs:
    """Of a prompt without media."""
    return {name: value[:, :count] for name, value in inputs.items()}


def extended(inputs: Inputs, tokens: Sequence[int]) -> Inputs:
    """The prompt with more text behind it, as a chat's next turn has it."""
    letters = [t if t < LAST_LETTER else 3 + t % 80 for t in tokens]
    more = torch.tensor([letters], dtype=torch.long)
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], dim=1)}
    for name in MARKS:
        if name not in inputs:
            continue
        mark = inputs[name]
        last = mark[:, -1:] if name in ("attention_mask", "cross_attention_mask") else None
        new = torch.zeros_like(mark[:, :1]) if last is None else last
        longer[name] = torch.cat([mark, *[new] * len(tokens)], dim=1)
    return longer


def draw_case(
    draw: random.Random,
    prompt: Inputs,
    config: Any,
    ask: Callable[[Case], Result],
    *,
    room: int,
    is_greedy: bool,
) -> Case:
    """`ask` gives the plain answer to a case: stop strings and EOS are taken from what is said.
    `room`: tokens that the model has positions for."""
    most = min(draw.choice([1, 2, 7, 12, 20]), room)
    options: dict[str, Any] = {
        **({"temperature": 0.0} if is_greedy else draw_sampling(draw)),
        **draw_penalties(draw),
        **draw_kept(draw),
        **draw_configured(draw, config),
        "seed": draw.choice([0, draw.randrange(1000), 2**64 - 1]),
        "max_new_tokens": most,
    }
    if draw.random() < 0.2:
        options["sample"] = draw.choice([1, 3, 2**31])
    case = Case(prompt, options, draw_objects(draw))
    said = ask(case)
    if said.tokens and draw.random() < 0.3:
        token = draw.choice(said.tokens)
        others = [draw.randrange(3, LAST_LETTER), EOS_TOKEN]
        options["eos_token_id"] = draw.choice([token, [token], [*others, token]])
    elif draw.random() < 0.2:
        options["ignore_eos"] = True
    if len(said.text) > 1 and draw.random() < 0.3:
        start = draw.randrange(len(said.text))
        stop = said.text[start : start + draw.randint(1, 3)]
        options["stop"] = draw.choice([stop, [stop], ["qzx", stop, said.text[-2:]]])
    if draw.random() < 0.1:
        options["skip_special_tokens"] = False
    if draw.random() < 0.2:
        options["n"] = draw.randint(2, 4)
    how: dict[str, Any] = {"speculate": draw.choice(["auto"] * 4 + [True] * 5 + [False])}
    if draw.random() < 0.2:
        how["reuse"] = False
    if draw.random() < 0.3:
        how["namespace"] = draw.choice(["a", "b"])
    if draw.random() < 0.07:
        how["seed"] = None  # the answer says which one it took
    if said.text and draw.random() < 0.2:
        how["prediction"] = said.text if draw.random() < 0.5 else said.text[::-1] + said.text
    if said.text and draw.random() < 0.1:
        how["passages"] = [said.text[: draw.randint(1, 9)], Passage(said.text, in_prompt=False)]
    if options.get("n", 1) == 1 and draw.random() < 0.1:
        how["on_prefill"] = Reading()
    if draw.random() < 0.07:
        how["max_time"] = draw.choice([1e-6, 0.004, 0.02, 1000.0])  # s
    cancel = draw.randint(0, 8) if draw.random() < 0.15 else None
    return replace(case, options=options, cancel_after=cancel, how=how)
