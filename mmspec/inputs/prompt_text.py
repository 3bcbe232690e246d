"""The text that is tokenised: the template chosen, control tokens of the user's text treated."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from mmspec.errors import InputError
from mmspec.inputs.control_strings import control_strings
from mmspec.inputs.control_tokens import ControlMode, ControlTokens, map_text
from mmspec.inputs.draft_texts import answer_tokens, draft_texts
from mmspec.inputs.messages import Conversation
from mmspec.inputs.passages import Passage, PassageBlock
from mmspec.inputs.template import ChatTemplate, ToolSpec

logger = logging.getLogger(__name__)


class PromptText:
    """Writes the text of prompts for one tokenizer and processor.

    Not locked: the caller lets one thread in at a time.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        processor: ProcessorMixin | None,
        placeholders: Mapping[str, str],
    ) -> None:
        self._tokenizer = tokenizer
        self._processor = processor
        self._placeholders = placeholders  # "image" -> "<image>"
        self._templates: dict[str, ChatTemplate] = {}
        self._control: dict[str, ControlTokens] = {}
        self._has_warned = False

    def find_template(
        self, arguments: Mapping[str, object] | None, tools: Sequence[ToolSpec] | None
    ) -> ChatTemplate | None:
        """The template to use; None if there is none. `arguments` may name or hold another.

        Raises InputError: several templates and no default among them, one that is no text.
        """
        owners = [one for one in (self._processor, self._tokenizer) if one is not None]
        given = (arguments or {}).get("chat_template")
        if given is not None and not isinstance(given, str):
            raise InputError(
                f"got chat_template={given!r:.80}; expected a template's text, or the name of one"
            )
        for owner in owners:
            named = owner.chat_template
            if isinstance(named, dict):
                default = "tool_use" if tools and "tool_use" in named else "default"
                source = named.get(given or default, given)
                if source is None:
                    raise InputError(
                        f"this model has the chat templates {sorted(named)} and none is the "
                        'default; choose with template_arguments={"chat_template": name}'
                    )
            else:
                source = given or named
            if isinstance(source, str):
                if source not in self._templates:
                    self._templates[source] = ChatTemplate(
                        owner, source, placeholders=self._placeholders
                    )
                return self._templates[source]
        return None

    def _control_tokens(self, template: str) -> ControlTokens:
        if template not in self._control:
            strings = control_strings(self._tokenizer, processor=self._processor, template=template)
            self._control[template] = ControlTokens(self._tokenizer, strings)
        return self._control[template]

    def render(
        self,
        conversation: Conversation,
        template: ChatTemplate,
        *,
        tools: Sequence[ToolSpec] | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        arguments: Mapping[str, object] | None = None,
        mode: ControlMode = "neutralise",
        block: PassageBlock | None = None,
    ) -> str:
        """The chat template's text, control tokens in messages, tools and documents treated; those
        in passages are neutralised in every mode.

        Raises InputError: what the template refuses, control tokens that cannot be neutralised,
        values in values too deep.
        """
        control = self._control_tokens(template.source)

        def render(change: Callable[[str], str], change_passages: Callable[[str], str]) -> str:
            messages = tuple(map_text(message, change) for message in conversation.messages)
            if block is not None:
                messages = block.put_into(messages, change_passages)
            return template.render(
                replace(conversation, messages=messages),
                tools=map_text(tools, change),
                documents=map_text(documents, change),
                arguments=arguments,
            )

        try:
            text = render(lambda string: control.apply(string, mode), control.neutralise)
        except RecursionError as error:
            raise InputError("messages, tools or documents are nested too deep") from error
        if mode == "parse" and block is None:
            return text
        # Pieces that are harmless alone may form a control token where the template joins them:
        # so count against the same conversation without any character of a control token.
        as_given = (lambda string: string) if mode == "parse" else control.plain
        _check_joins(control, text, render(as_given, control.plain))
        return text

    def warn_of_template(self, prompt: str, template: ChatTemplate) -> None:
        """Says once of a text for the template that it seems to have been through one."""
        begins_with = self._control_tokens(template.source).beginning(prompt)
        is_written = begins_with is not None and begins_with not in self._placeholders.values()
        if is_written and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "a prompt begins with the control token %r, as one that a chat template has "
                "written: it goes through the chat template all the same, as a user's text; give "
                "a prompt that is complete with raw=True, or its messages",
                begins_with,
            )

    def with_passages(self, prompt: str, block: PassageBlock) -> str:
        """A prompt without template, the passages round it by theirs.

        Raises InputError: control tokens that cannot be neutralised.
        """
        control = self._control_tokens("")
        text = block.write(prompt, control.neutralise)
        _check_joins(control, text, block.write(prompt, control.plain))
        return text

    def draft_texts(self, passages: Sequence[Passage]) -> tuple[tuple[int, ...], ...]:
        """The passages' tokens, to be copied from; control tokens among them never are."""
        return draft_texts(passages, self._tokenizer, self._control_tokens("").ids)

    def answer_tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of what an answer may be, to be copied from; control tokens never are."""
        return answer_tokens(text, self._tokenizer, self._control_tokens("").ids)

    def defuse(self, prompt: str, *, mode: ControlMode) -> str:
        """A prompt without template: its media placeholders are meant, no other control token is.

        Raises InputError: control tokens that cannot be neutralised, any in the mode `refuse`.
        """
        control = self._control_tokens("")
        pieces, text = [prompt], ""
        for placeholder in self._placeholders.values():
            pieces = [part for piece in pieces for part in _split(piece, placeholder)]
        for piece in pieces:
            is_placeholder = piece in self._placeholders.values()
            text += piece if is_placeholder else control.apply(piece, mode)
        return text


def _check_joins(control: ControlTokens, text: str, plain: str) -> None:
    """Raises InputError where `text` has control tokens that `plain`, the same with stand-ins for
    the user's text, has not."""
    surplus = control.count(text) - control.count(plain)
    if surplus:
        raise InputError(
            f"parts of the messages or passages join to control tokens "
            f"({sorted(map(str, surplus))}); expected plain text in them: take these pieces out, "
            "or put the text into one part"
        )


def _split(text: str, separator: str) -> list[str]:
    """`text` cut at `separator`, which is kept as pieces of its own."""
    pieces: list[str] = []
    for piece in text.split(separator):
        pieces += [piece, separator]
    return pieces[:-1]
