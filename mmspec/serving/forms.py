"""Which path is asked in which form."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from mmspec.serving.chat import ChatForm
from mmspec.serving.completions import CompletionForm
from mmspec.serving.form import Form
from mmspec.serving.kept import KeptResponses
from mmspec.serving.responses import ResponseForm
from mmspec.serving.settings import ServerSettings

CHATS, RESPONSES, TEXTS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
# Of a body, for a client's namespace. Raises ApiError.
FormType: TypeAlias = Callable[[object, ServerSettings, str], Form]


def forms(kept: KeptResponses) -> Mapping[str, FormType]:
    """By their paths."""
    return {
        CHATS: ChatForm,
        RESPONSES: partial(ResponseForm, kept=kept),
        TEXTS: CompletionForm,
    }
