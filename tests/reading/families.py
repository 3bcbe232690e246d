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
    "seed-oss": Family(
        "</seed:think><seed:tool_call><function=",
        "<seed:think>Let me see.</seed:think>\nWell.<seed:tool_call>\n<function=get_weather>\n"
        "<parameter=city>Paris</parameter>\n<parameter=days>3</parameter>\n"
        '<parameter=tags>["a"]</parameter>\n</function>\n</seed:tool_call><seed:eos>',
        (
            "<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>", "<seed:eos>",
            "<seed:cot_budget_reflect>",
        ),
    ),
    "command": Family(
        "<|START_ACTION|><|START_THINKING|>",
        "<|START_THINKING|>Let me see.<|END_THINKING|><|START_RESPONSE|>Well.<|END_RESPONSE|>"
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "get_weather", "parameters": '
        f"{_JSON}}}\n]<|END_ACTION|><|END_OF_TURN_TOKEN|>",
        ("<|START_ACTION|>", "<|END_ACTION|>", "<|START_THINKING|>", "<|END_OF_TURN_TOKEN|>"),
    ),
    "deepseek-v3.2": Family(
        "</think>｜DSML｜",
        f"{_THINK}<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get_weather\">\n"
        '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="tags" string="false">["a"]</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    ),
    "granite3": Family(
        "<think></think><response></response><|tool_call|>",
        f'{_THINK}<|tool_call|>[{{"name": "get_weather", "arguments": {_JSON}}}]',
        ("<|tool_call|>",),
    ),
    "ernie": Family(
        "</think><response></response><tool_call>",
        "<think>\nLet me see.\n</think>\n\n<response>\nWell.\n</response>\n\n<tool_call>\n"
        f'{{"name": "get_weather", "arguments": {_JSON}}}\n</tool_call>',
    ),
    "phi-4-mini": Family(
        "</think><|tool_call|>",
        f'{_THINK}<|tool_call|>{{"name": "get_weather", "arguments": {_JSON}}}<|/tool_call|>',
    ),
    "nemotron2": Family(
        "</think><TOOLCALL>",
        f'{_THINK}<TOOLCALL>[{{"name": "get_weather", "arguments": {_JSON}}}]</TOOLCALL>',
    ),
    "hunyuan": Family(
        "</think><tool_calls>[",
        f'{_THINK}<tool_calls>[{{"name": "get_weather", "arguments": {_JSON}}}]</tool_calls>',
    ),
    "internlm": Family(
        "</think><|action_start|><|plugin|>",
        f'{_THINK}<|action_start|><|plugin|>\n{{"name": "get_weather", "parameters": {_JSON}}}'
        "<|action_end|>",
        ("<|action_start|>", "<|plugin|>", "<|action_end|>"),
    ),
    "apertus": Family(
        "<|inner_prefix|><|tools_prefix|>",
        "<|inner_prefix|>Let me see.<|inner_suffix|>Well.<|tools_prefix|>"
        f'[{{"get_weather": {_JSON}}}]<|tools_suffix|><|assistant_end|>',
        (
            "<|inner_prefix|>", "<|inner_suffix|>", "<|tools_prefix|>", "<|tools_suffix|>",
            "<|assistant_end|>",
        ),
    ),
    "lfm2": Family(
        "</think><|tool_call_start|>",
        f"{_THINK}<|tool_call_start|>[get_weather(city='Paris', days=3, tags=[\"a\"])]"
        "<|tool_call_end|>",
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "olmo3": Family(
        "</think><function_calls>",
        f"{_THINK}<function_calls>\nget_weather(city='Paris', days=3, tags=[\"a\"])\n"
        "</function_calls>",
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
