"""Haystack: a chat generator whose socket `documents` takes what a retriever found.

    pipeline.add_component("generator", MmspecChatGenerator("path-or-hub-id"))
    pipeline.connect("retriever.documents", "generator.documents")

generator    MmspecChatGenerator
messages     Haystack's messages and documents -> mmspec's
"""

from mmspec.errors import MissingExtraError

try:
    from mmspec.integrations.haystack.generator import MmspecChatGenerator
except ModuleNotFoundError as error:
    if (error.name or "").startswith("mmspec"):
        raise
    raise MissingExtraError(
        f"mmspec.integrations.haystack needs haystack-ai ({error}): pip install 'mmspec[haystack]'"
    ) from error

__all__ = ["MmspecChatGenerator"]
