"""LangChain: a chat model, for chains, retrievers and agents.

    llm = ChatMmspec(model="path-or-hub-id", temperature=0)
    llm.invoke(messages, passages=retriever.invoke(question))

chat_model    ChatMmspec
messages      LangChain's messages and documents -> mmspec's
together      a batch's prompts, decoded as one
"""

from mmspec.errors import MissingExtraError

try:
    from mmspec.integrations.langchain.chat_model import ChatMmspec
except ModuleNotFoundError as error:
    if (error.name or "").startswith("mmspec"):
        raise
    raise MissingExtraError(
        f"mmspec.integrations.langchain needs langchain-core ({error}): "
        "pip install 'mmspec[langchain]'"
    ) from error

__all__ = ["ChatMmspec"]
