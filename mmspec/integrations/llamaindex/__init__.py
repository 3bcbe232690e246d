"""LlamaIndex: an LLM, and a synthesizer that hands the retrieved nodes to it as passages.

    llm = MmspecLLM(model="path-or-hub-id", temperature=0)
    engine = RetrieverQueryEngine(retriever, response_synthesizer=PassageSynthesizer(llm=llm))

llm            MmspecLLM
messages       LlamaIndex's messages -> mmspec's
synthesizer    PassageSynthesizer
"""

from mmspec.errors import MissingExtraError

try:
    from mmspec.integrations.llamaindex.llm import MmspecLLM
    from mmspec.integrations.llamaindex.synthesizer import PassageSynthesizer
except ModuleNotFoundError as error:
    if (error.name or "").startswith("mmspec"):
        raise
    raise MissingExtraError(
        f"mmspec.integrations.llamaindex needs llama-index-core ({error}): "
        "pip install 'mmspec[llamaindex]'"
    ) from error

__all__ = ["MmspecLLM", "PassageSynthesizer"]
