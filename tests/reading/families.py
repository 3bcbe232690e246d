"""Answers as the families write them, and tokenizers that have their special tokens."""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

import mmspec
from mmspec.reading import AnswerReader, Reasoning, ToolCall
from mmspec.reading.form import form_of, special_strings
from mmspec.training.tiny.build import build_model, build_processor, build_tokenizer

_PROPERTIES = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "tags": {"type": "array", "items": {"type": "string"}},
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": _PROPERTIES},
    },
}
PING = {"type": "function", "function": {"name": "ping", "parameters": {"type": "object"}}}
TOOLS = [WEATHER, PING]


class Family(NamedTuple):
    """One answer of each: it thinks "Let me see.", says "Well." and calls get_weather."""

    template: str  # the marks in its chat template
    answer: str
    special: tuple[str, ...] = ()


HARMONY = "<|start|> <|channel|> <|message|> <|constrain|> <|end|> <|call|> <|return|>".split()
_THINK = "<think>\nLet me see.\n</think>\n\nWell."
_JSON = '{"city": "Paris", "days": 3, "tags": ["a"]}'

FAMILIES = {
    "qwen3": Family(
        "<think></think><tool_call>",
        f'{_THINK}<tool_call>\n{{"name": "get_weather", "arguments": {_JSON}}}\n</tool_call>',
    ),
    "qwen3-coder": Family(
        "</think><tool_call><function=",
        f"{_THINK}<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n"
        '<parameter=tags>\n["a"]\n</parameter>\n</function>\n</tool_call>',
    ),
    "glm": Family(
        "</think><tool_call><arg_key>",
        "\n<think>Let me see.</think>\nWell."
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
        '<arg_key>tags</arg_key>\n<arg_value>["a"]</arg_value>\n</tool_call>',
    ),
    "minimax": Family(
        "</think><minimax:tool_call>",
        f'{_THINK}<minimax:tool_call>\n<invoke name="get_weather">\n'
        '<parameter name="city">Paris</parameter>\n<parameter name="days">3</parameter>\n'
        '<parameter name="tags">["a"]</parameter>\n</invoke>\n</minimax:tool_call>',
    ),
    "kimi": Family(
        "</think><|tool_call_begin|>",
        "<think>Let me see.</think>Well.<|tool_calls_section_begin|><|tool_call_begin|>"
        f"functions.get_weather:0<|tool_call_argument_begin|>{_JSON}<|tool_call_end|>"
        "<|tool_calls_section_end|><|im_end|>",
        (
            "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>",
            "<|tool_call_end|>", "<|tool_calls_section_end|>", "<|im_end|>",
        ),
    ),
    "deepseek-r1": Family(
        "</think><｜tool▁call▁begin｜>",
        f"{_THINK}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
        f"```json\n{_JSON}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "deepseek-v3.1": Family(
        "</think><｜tool▁call▁begin｜>",
        f"{_THINK}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{_JSON}"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    ),
    "mistral": Family(
        "[TOOL_CALLS][THINK]",
        "[THINK]Let me see.[/THINK]Well."
        f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {_JSON}, "id": "abcdefghi"}}]</s>',
        ("[TOOL_CALLS]", "[THINK]", "[/THINK]"),
    ),
    "mistral-v11": Family(
        "[TOOL_CALLS][THINK]",
        f"[THINK]Let me see.[/THINK]Well.[TOOL_CALLS]get_weather[ARGS]{_JSON}</s>",
        ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
    ),
    "gpt-oss": Family(
        "<|channel|>",
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>Well.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
        f"<|constrain|>json<|message|>{_JSON}<|call|>",
        tuple(HARMONY),
    ),
    "gpt-oss, to before the channel": Family(
        "<|channel|>",
        "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant<|channel|>final"
        "<|message|>Well.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary "
        f"json<|message|>{_JSON}<|call|>",
        tuple(HARMONY),
    ),
    "gemma4": Family(
        "<|channel>",
        "<|channel>thought\nLet me see.<channel|>Well.<|tool_call>call:get_weather"
        '{city:<|"|>Paris<|"|>,days:3,tags:[<|"|>a<|"|>]}<tool_call|><turn|>',
        ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<turn|>", '<|"|>'),
    ),
}  # fmt: skip


@cache
def tokenizer_of(special: tuple[str, ...] = (), added: tuple[str, ...] = ()) -> Any:
    tokenizer: PreTrainedTokenizerFast = build_tokenizer()
    tokenizer.add_tokens([AddedToken(one, normalized=False) for one in added])
    tokens = [AddedToken(one, special=True, normalized=False) for one in special]
    tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer


def reader_of(family: Family, tools: Sequence[Any] = TOOLS, beginning: str = "") -> AnswerReader:
    tokenizer = tokenizer_of(family.special)
    form = form_of(tokenizer, family.template, has_tools=bool(tools))
    return AnswerReader(form, tools, beginning=beginning, unseen=special_strings(tokenizer))


def told(parts: Sequence[str | Reasoning | ToolCall]) -> list[tuple[str, object]]:
    """In its order, neighbours joined."""
    found = list[tuple[str, Any]]()
    for part in parts:
        kind, value = "text", part
        if isinstance(part, Reasoning):
            kind, value = "reasoning", part.text
        elif isinstance(part, ToolCall):
            found.append((part.name, dict(part.arguments)))
            continue
        if found and found[-1][0] == kind:
            value = found.pop()[1] + value
        found.append((kind, value))
    return found


def thinking_engine() -> mmspec.Engine:
    """With the marks of gpt-oss as special tokens, and </think> as a plain one."""
    model, processor = build_model("nano").double().eval(), build_processor()
    tokens = [AddedToken(one, special=True, normalized=False) for one in HARMONY]
    processor.tokenizer.add_tokens(tokens, special_tokens=True)
    processor.tokenizer.add_tokens([AddedToken("</think>", normalized=False)])
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    return mmspec.load(model, processor, overrides={"decode.controller": "fixed"})
