r"""How families write their answers, for tokenizers that bring no response template of their own.

The fields are those of transformers' response templates (its docs, "Response parsing"), with these
customs: what is reasoning is the field `reasoning_content`; those of calls begin with `tool_calls`,
and `tool_calls_end` are marks behind the last of them; `content` is what is left, and its
`close_pattern` are marks that nobody is to see.

What `content_args` say of calls beside transformers' own: `is_python`, of text that is calls in
Python; `by_name`, of objects whose one key is the call's name.

No pattern may end in an optional part: the parser takes what matches, and does not wait for more.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

Fields = Mapping[str, Mapping[str, Any]]


class Known(NamedTuple):
    """Of one family, or of several that write alike."""

    mark: str  # in a chat template: so its model writes
    fields: Fields
    tokens: tuple[str, ...] = ()  # marks that may be special tokens, and so have to be decoded
    thought: tuple[str, str] | None = None  # what stands before the reasoning, and behind it


_NAMED = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}


def _json(open_pattern: str, close_pattern: str, **more: Any) -> dict[str, Any]:
    """Calls whose name stands in the opening mark, and whose arguments are JSON."""
    marks = {"open_pattern": open_pattern, "close_pattern": close_pattern}
    return {**marks, "repeats": True, "content": "json", "transform": _NAMED, **more}


def _listed(open_pattern: str, close_pattern: str, **more: Any) -> dict[str, Any]:
    """Calls that stand between marks, one or a list of them."""
    marks = {"open_pattern": open_pattern, "close_pattern": close_pattern}
    return {**marks, "repeats": True, "content": "json", **more}


def _python(open_pattern: str, close_pattern: str) -> dict[str, Any]:
    return _listed(open_pattern, close_pattern, content="text", content_args={"is_python": True})


def _tags(open_pattern: str, close_pattern: str, tag_pattern: str) -> dict[str, Any]:
    """Calls whose arguments stand in tags. What type they have only the tool's schema tells."""
    arguments = {"content": "xml-inline", "content_args": {"tag_pattern": tag_pattern}}
    return _json(open_pattern, close_pattern, **arguments)


def _end(open_pattern: str) -> dict[str, Any]:
    """A mark without any text of its own."""
    return {"open_pattern": open_pattern, "close_pattern": r"(?=.)|\Z", "repeats": True}


def _thought(open_pattern: str, close_pattern: str) -> dict[str, Any]:
    """Reasoning, without the blanks beside its marks."""
    marks = {
        "open_pattern": rf"{open_pattern}\s{{0,8}}",
        "close_pattern": rf"\s{{0,8}}{close_pattern}\s{{0,8}}",
    }
    return {**marks, "content": "text"}


# Harmony's messages begin with a role, a channel, perhaps a recipient and a type.
_START = r"(?:<\|start\|>assistant)?"
_TO = r"\s{0,8}to=functions\.(?P<name>[a-zA-Z0-9_.-]{1,200})"
_TO_ANY = r"(?:\s{0,8}to=[a-zA-Z0-9_.-]{1,200}\s{0,8})?"
_CHANNEL = r"<\|channel\|>[a-z]{1,20}"
_TYPE = r"[ a-z]{0,20}(?:<\|constrain\|>[ a-z]{0,20})?<\|message\|>"

# The first whose mark is found says how a field is written.
KNOWN = (
    Known(  # gpt-oss: openai/harmony, docs/format.md
        "<|channel|>",
        {
            "reasoning_content": {
                "open_pattern": rf"{_START}<\|channel\|>analysis<\|message\|>",
                "close_pattern": r"<\|(?:end|return)\|>|(?=<\|(?:start|channel|call)\|>)",
                "content": "text",
            },
            "tool_calls": _json(
                rf"{_START}(?:{_TO}\s{{0,8}}{_CHANNEL}|{_CHANNEL}{_TO}){_TYPE}",
                r"<\|(?:call|end|return)\|>|(?=<\|(?:start|channel)\|>)",
            ),
            "content": {
                "close_pattern": rf"{_START}{_TO_ANY}{_CHANNEL}{_TO_ANY}{_TYPE}"
                r"|<\|(?:end|return|call)\|>",
            },
        },
        ("<|channel|>", "<|message|>", "<|call|>"),
        (
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ),
    Known(  # Gemma 4: its chat template
        "<|channel>",
        {
            "reasoning_content": _thought(r"<\|channel>thought\n", r"<channel\|>"),
            "tool_calls": _json(
                r"<\|tool_call>call:(?P<name>[\w.-]+)",
                r"<tool_call\|>",
                content_args={"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
            ),
            "content": {"close": ["<turn|>", "<|tool_response>", "<eos>"]},
        },
        ("<|channel>", "<|tool_call>"),
        ("<|channel>thought\n", "<channel|>"),
    ),
    Known(  # Mistral from v11 on (Small 3.2, Magistral), and before it: mistral-common
        "[TOOL_CALLS]",
        {
            "tool_calls": _json(
                r"\[TOOL_CALLS\]\s{0,8}(?P<name>[^\s\[{]+)\s{0,8}(?:\[CALL_ID\][^\[{]*)?"
                r"(?:\[ARGS\])?\s{0,8}(?=\{)",
                r"</s>|(?=\[TOOL_CALLS\])",
            ),
            "tool_calls_before": {
                "open_pattern": r"\[TOOL_CALLS\]\s{0,8}(?=\[)",
                "close_pattern": r"</s>|(?=\[TOOL_CALLS\])",
                "repeats": True,
                "content": "json",
            },
        },
        ("[TOOL_CALLS]", "[ARGS]"),
    ),
    Known(  # Magistral
        "[THINK]",
        {"reasoning_content": _thought(r"\[THINK\]", r"\[/THINK\]")},
        ("[THINK]", "[/THINK]"),
        ("[THINK]", "[/THINK]"),
    ),
    Known(  # Kimi K2: docs/tool_call_guidance.md of its repository; its ids name the call's number
        "<|tool_call_begin|>",
        {
            "tool_calls": _json(
                r"(?:<\|tool_calls_section_begin\|>)?\s{0,8}<\|tool_call_begin\|>\s{0,8}"
                r"(?P<id>(?:functions\.)?(?P<name>[^\s:<]+)(?::\d+)?)\s{0,8}"
                r"<\|tool_call_argument_begin\|>",
                r"<\|tool_call_end\|>\s{0,8}",
                transform={"id": "{id}", **_NAMED},
            ),
            "tool_calls_end": _end(r"<\|tool_calls_section_end\|>"),
        },
        ("<|tool_call_begin|>", "<|tool_calls_section_begin|>"),
    ),
    Known(  # DeepSeek R1 and V3, whose calls have a type and a fence, and V3.1, whose have not
        "<｜tool▁call▁begin｜>",
        {
            "tool_calls": _json(
                r"(?:<｜tool▁calls▁begin｜>)?\s{0,8}<｜tool▁call▁begin｜>"
                r"(?:function<｜tool▁sep｜>(?P<name>[^\n<]+)\n```json\n"
                r"|(?P<name>[^\n<]+)<｜tool▁sep｜>\s{0,8}(?=\{))",
                r"(?:\n```)?<｜tool▁call▁end｜>\s{0,8}",
            ),
            "tool_calls_end": _end("<｜tool▁calls▁end｜>"),
        },
        ("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
    ),
    Known(  # MiniMax M2: docs/tool_calling_guide.md of its repository
        "<minimax:tool_call>",
        {
            "tool_calls": _tags(
                r'(?:<minimax:tool_call>\s{0,8})?<invoke name="(?P<name>[^"]+)">',
                r"</invoke>\s{0,8}",
                r'<parameter name="(?P<key>[^"]+)">\n?(?P<value>.*?)\n?</parameter>',
            ),
            "tool_calls_end": _end("</minimax:tool_call>"),
        },
        ("<minimax:tool_call>",),
    ),
    Known(  # Qwen3-Coder, Qwen3.5, Nemotron 3, Seed-OSS; the outer tags are often left out
        "<function=",
        {
            "tool_calls": _tags(
                r"(?:<(?:seed:)?tool_call>\s{0,8})?<function=(?P<name>[^>\n]+)>",
                r"</function>\s{0,8}",
                r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>",
            ),
            "tool_calls_end": _end("</(?:seed:)?tool_call>"),
        },
        ("<seed:tool_call>", "</seed:tool_call>"),
    ),
    Known(  # Seed-OSS
        "</seed:think>",
        {"reasoning_content": _thought(r"\A\s{0,8}<seed:think>", "</seed:think>")},
        ("<seed:think>", "</seed:think>"),
        ("<seed:think>", "</seed:think>"),
    ),
    Known(  # Command R7B, Command A
        "<|START_ACTION|>",
        {
            "reasoning_content": _thought(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
            "tool_calls": _listed(
                r"<\|START_ACTION\|>",
                r"<\|END_ACTION\|>",
                transform_each=True,
                transform={"name": "{tool_name}", "arguments": "{parameters}"},
            ),
            "content": {"close_pattern": r"<\|(?:START|END)_RESPONSE\|>|<\|END_OF_TURN_TOKEN\|>"},
        },
        ("<|START_THINKING|>", "<|START_ACTION|>"),
        ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    ),
    Known(  # DeepSeek V3.2
        "｜DSML｜",
        {
            "tool_calls": _tags(
                r'(?:<｜DSML｜function_calls>\s{0,8})?<｜DSML｜invoke name="(?P<name>[^"]+)">',
                r"</｜DSML｜invoke>\s{0,8}",
                r'<｜DSML｜parameter name="(?P<key>[^"]+)"(?: string="(?:true|false)")?>'
                r"(?P<value>.*?)</｜DSML｜parameter>",
            ),
            "tool_calls_end": _end("</｜DSML｜function_calls>"),
        },
    ),
    Known(  # Granite 3, Phi-4-mini
        "<|tool_call|>",
        {"tool_calls": _listed(r"<\|tool_call\|>", r"<\|/tool_call\|>|(?=<\|tool_call\|>)")},
        ("<|tool_call|>", "<|/tool_call|>"),
    ),
    Known(  # Nemotron Nano 2, Llama Nemotron
        "<TOOLCALL>",
        {"tool_calls": _listed("<TOOLCALL>", "</TOOLCALL>")},
    ),
    Known("<tool_calls>[", {"tool_calls": _listed("<tool_calls>", "</tool_calls>")}),  # Hunyuan
    Known(  # InternLM 2 and later
        "<|action_start|>",
        {"tool_calls": _listed(r"<\|action_start\|>\s{0,8}<\|plugin\|>", r"<\|action_end\|>")},
        ("<|action_start|>", "<|plugin|>", "<|action_end|>"),
    ),
    Known(  # Apertus
        "<|tools_prefix|>",
        {
            "reasoning_content": {
                "open_pattern": r"<\|inner_prefix\|>",
                "close_pattern": r"<\|inner_suffix\|>|(?=<\|tools_prefix\|>)",
                "content": "text",
            },
            "tool_calls": _listed(
                r"<\|tools_prefix\|>", r"<\|tools_suffix\|>", content_args={"by_name": True}
            ),
        },
        ("<|inner_prefix|>", "<|inner_suffix|>", "<|tools_prefix|>", "<|tools_suffix|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
    ),
    *(  # LFM2, by what its first and its later templates have
        Known(
            mark,
            {"tool_calls": _python(r"<\|tool_call_start\|>", r"<\|tool_call_end\|>")},
            ("<|tool_call_start|>", "<|tool_call_end|>"),
        )
        for mark in ("<|tool_call_start|>", "<|tool_list_start|>")
    ),
    Known(
        "<function_calls>", {"tool_calls": _python("<function_calls>", "</function_calls>")}
    ),  # OLMo 3
    Known(  # GLM from 4.5 on
        "<arg_key>",
        {
            "tool_calls": _tags(
                r"<tool_call>\s{0,8}(?P<name>[^\s<{]+)\s{0,8}(?=<arg_key>|</tool_call>)",
                r"</tool_call>",
                r"<arg_key>(?P<key>.*?)</arg_key>\s{0,8}<arg_value>(?P<value>.*?)</arg_value>",
            )
        },
    ),
    # Qwen3, DeepSeek R1, GLM, Kimi, MiniMax and most others. Only an answer's beginning is one.
    Known(
        "</think>",
        {"reasoning_content": _thought(r"\A\s{0,8}<think>", "</think>")},
        ("<think>", "</think>"),
        ("<think>", "</think>"),
    ),
    Known(  # Granite 3.3, ERNIE 4.5: they say their answer between these
        "</response>",
        {"content": {"close_pattern": r"\s{0,8}</?response>\s{0,8}"}},
        ("<response>", "</response>"),
    ),
    Known(  # Hermes, Qwen, Granite 4, ERNIE 4.5; and for all whose template names no other form
        "",
        {
            "tool_calls": {
                "open": "<tool_call>",
                "close": "</tool_call>",
                "repeats": True,
                "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
        },
        ("<tool_call>", "</tool_call>"),
    ),
    Known("", {"content": {}}),
)

# What a prompt ends with, before the answer: a template's opening of the model's turn, or the
# result of a call. What a template writes behind it is the answer's beginning.
BEGINNINGS = "|".join(
    (
        r"<\|im_start\|>assistant\n?",
        r"<\|im_assistant\|>assistant<\|im_middle\|>",
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\n*",
        r"<\|start\|>assistant",
        r"<\|assistant\|>",
        r"<\|assistant_start\|>",
        r"<\|CHATBOT_TOKEN\|>",
        r"<seed:bos>assistant\n",
        r"<\|turn>model\n",
        r"<start_of_turn>model\n",
        r"<\|Assistant\|>",
        r"<｜Assistant｜>",
        r"<｜tool▁outputs?▁end｜>",
        r"<tool_response\|>",
        r"\]~b\]ai\n",
        r"\[/INST\]",
        r"\[/TOOL_RESULTS\]",
        r"(?=<think>\s*\Z)",  # of any other
    )
)
