"""LlamaIndex: an LLM, and a synthesizer that hands the retrieved nodes to it as passages.

    llm = MmspecLLM(model="path-or-hub-id", temperature=0)
    engine = RetrieverQueryEngine(retriever, response_synthesizer=PassageSynthesizer(llm=llm))

llm            MmspecLLM
messages       LlamaIndex's messages -> mmspec's
synthesizer    PassageSynthesizer
"""

from mmspec.integrations.extra import extra

with extra("llamaindex", "llama-index-core"):
    from mmspec.integrations.llamaindex.llm import MmspecLLM
    from mmspec.integrations.llamaindex.synthesizer import PassageSynthesizer

__all__ = ["MmspecLLM", "PassageSynthesizer"]
