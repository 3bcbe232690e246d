"""The chat template of a model: conversation -> the text that is tokenised."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Literal, cast

import jinja2
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from mmspec.errors import InputError
from mmspec.inputs.messages import Conversation

ToolSpec = Mapping[str, object] | Callable[..., object]
"""A JSON schema, or a function with type hints and a docstring."""

_PROBE = "qzxprobeqzx"
_OWN_ARGUMENTS = ("add_generation_prompt", "continue_final_message", "tokenize")
REASONING = ("reasoning_content", "thinking", "reasoning")  # by which templates name it
# What a template may fail with, as a small program: `tojson` of what is nested too deep, say.
TEMPLATE_ERRORS = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
    jinja2.TemplateError,
)  # fmt: skip


@lru_cache(maxsize=16)
def variables(source: str) -> frozenset[str]:
    """Names that a template reads, its own among them."""
    try:
        found = [one for one in jinja2.Environment().lex(source) if one[1] != "whitespace"]
    except jinja2.TemplateSyntaxError:
        return frozenset()
    around = zip([(0, "", ""), *found], found, found[1:], strict=False)
    return frozenset(
        value
        for (_, _, before), (_, kind, value), (_, _, behind) in around
        if kind == "name" and before != "." and behind != "="
    )


class ChatTemplate:
    """One template and the form in which it wants each role's content.

    Templates of vision-language models read a list of parts, those of text models a string, and
    some (Llama 3.2 Vision) one for the user and the other for the system; a template given the
    wrong one prints Python source into the prompt. So each role is tried once with a probe.
    Not locked: the caller lets one thread in at a time.
    """

    def __init__(
        self,
        owner: ProcessorMixin | PreTrainedTokenizerBase,
        source: str,
        *,
        placeholders: Mapping[str, str],
    ) -> None:
        self.source = source
        self._owner = owner
        self._placeholders = placeholders  # "image" -> "<image>", for templates that read strings
        self._forms: dict[str, Literal["parts", "string"]] = {}

    def render(
        self,
        conversation: Conversation,
        *,
        tools: Sequence[ToolSpec] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        arguments: Mapping[str, object] | None = None,
    ) -> str:
        """The prompt's text. A begun assistant turn is left open, else the template opens one.

        Raises InputError: the template refuses the conversation, or would ignore `tools` or
        `documents`.
        """
        for name, given in (("tools", tools), ("documents", documents)):
            if given and name not in self.source:
                raise InputError(
                    f"got {name}=, but this model's chat template does not use them; write them "
                    "into a message"
                )
        messages = [self._shape(message) for message in conversation.messages]
        extra = {
            name: value for name, value in (arguments or {}).items() if name != "chat_template"
        }
        own = [name for name in _OWN_ARGUMENTS if name in extra]
        if own:
            raise InputError(
                f"got {own[0]} among template_arguments; leave it out: a last message of the "
                "assistant is gone on with, else its answer is begun"
            )
        if tools:
            extra["tools"] = list(tools)
        if documents:
            extra["documents"] = [dict(document) for document in documents]
        try:
            return self._apply(messages, is_begun=conversation.is_begun, extra=extra)
        except TEMPLATE_ERRORS as error:
            raise InputError(
                f"the chat template does not take these messages: {error}; roles in order: "
                f"{[message['role'] for message in messages]}"
            ) from error

    def _apply(
        self, messages: list[dict[str, object]], *, is_begun: bool, extra: Mapping[str, object]
    ) -> str:
        # A processor's own template is not named: SmolVLM takes another where there are videos.
        is_own = self.source == self._owner.chat_template
        rendered = self._owner.apply_chat_template(
            messages,
            chat_template=None if is_own else self.source,
            tokenize=False,
            add_generation_prompt=not is_begun,
            continue_final_message=is_begun,
            **extra,
        )
        return cast(str, rendered)

    def _shape(self, message: Mapping[str, object]) -> dict[str, object]:
        parts = cast(list[dict[str, str]], message["content"])
        role = cast(str, message["role"])
        thought = next((message[name] for name in REASONING if message.get(name)), None)
        if thought is not None:  # under each name that the template may read it by
            message = {**message, **{name: thought for name in REASONING if name in self.source}}
        if not parts:
            return {**message, "content": ""}
        if role not in self._forms:
            self._forms[role] = self._probe(role)
        if self._forms[role] == "parts":
            return {**message, "content": parts}
        texts = [
            part["text"] if part["type"] == "text" else self._placeholder(part["type"])
            for part in parts
        ]
        return {**message, "content": "".join(texts)}

    def _placeholder(self, kind: str) -> str:
        if kind not in self._placeholders:
            raise InputError(
                f"this model's chat template takes text only, and its processor names no "
                f"placeholder for a {kind}; use raw=True and write the placeholder yourself"
            )
        return self._placeholders[kind]

    def _probe(self, role: str) -> Literal["parts", "string"]:
        preferred: list[tuple[Literal["parts", "string"], object]]
        preferred = [("parts", [{"type": "text", "text": _PROBE}]), ("string", _PROBE)]
        if isinstance(self._owner, PreTrainedTokenizerBase):
            preferred.reverse()
        for form, content in preferred:
            for messages in self._probe_chats({"role": role, "content": content}):
                try:
                    text = self._apply(messages, is_begun=False, extra={})
                except TEMPLATE_ERRORS:
                    continue
                if _PROBE in text and not any(mark in text for mark in ("'text'", '"text"')):
                    return form
        return "string" if role in ("tool", "function", "ipython") else preferred[0][0]

    def _probe_chats(self, message: dict[str, object]) -> list[list[dict[str, object]]]:
        """Conversations that most templates take with this message in them."""
        if message["role"] == "user":
            return [[message]]
        user = self._shape({"role": "user", "content": [{"type": "text", "text": "Hi"}]})
        if message["role"] in ("system", "developer"):
            return [[message, user]]
        if message["role"] == "assistant":
            return [[user, message, user]]
        call = {"type": "function", "id": "call00001", "function": {"name": "f", "arguments": {}}}
        asked: dict[str, object] = {"role": "assistant", "content": "", "tool_calls": [call]}
        answer: dict[str, object] = {**message, "name": "f", "tool_call_id": "call00001"}
        return [[user, asked, answer], [user, answer]]
