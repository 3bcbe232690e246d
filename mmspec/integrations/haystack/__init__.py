"""Haystack: a chat generator whose socket `documents` takes what a retriever found.

    pipeline.add_component("generator", MmspecChatGenerator("path-or-hub-id"))
    pipeline.connect("retriever.documents", "generator.documents")

generator    MmspecChatGenerator
messages     Haystack's messages and documents -> mmspec's
"""

from mmspec.integrations.extra import extra

with extra("haystack", "haystack-ai"):
    from mmspec.integrations.haystack.generator import MmspecChatGenerator

__all__ = ["MmspecChatGenerator"]
