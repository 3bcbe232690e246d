"""LangChain: a chat model, for chains, retrievers and agents.

    llm = ChatMmspec(model="path-or-hub-id", temperature=0)
    llm.invoke(messages, passages=retriever.invoke(question))

chat_model    ChatMmspec
messages      LangChain's messages and documents -> mmspec's
structured    answers of a form, by a grammar
each          a batch's prompts, a thread each
"""

from mmspec.integrations.extra import extra

with extra("langchain", "langchain-core"):
    from mmspec.integrations.langchain.chat_model import ChatMmspec

__all__ = ["ChatMmspec"]
