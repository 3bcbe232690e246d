"""LlamaIndex: splitter, FAISS retriever, query engine, mmspec; offline.

python examples/rag_llamaindex.py

A query engine hands no keywords on, so a synthesizer gives the retrieved nodes to the model.
"""

import torch
from ledger import PASSAGE_TEMPLATE, NearestChunks, Report, chunks, ledger, questions
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from mmspec.integrations.llamaindex import MmspecLLM, PassageSynthesizer


class FaissRetriever(BaseRetriever):
    """The nearest nodes."""

    def __init__(self, nodes: list[TextNode]) -> None:
        super().__init__()
        self._nodes = nodes
        self._index = NearestChunks([node.text for node in nodes])

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._index.search(query_bundle.query_str)
        return [NodeWithScore(node=self._nodes[number], score=score) for number, score in found]


def split(texts: dict[str, str]) -> list[TextNode]:
    return [
        TextNode(
            text=chunk,
            metadata={"source": name},
            excluded_llm_metadata_keys=["source"],  # the model is shown the text alone
        )
        for name, text in texts.items()
        for chunk in chunks(text)
    ]


def main() -> None:
    torch.set_num_threads(1)  # the bundled model is too small to gain from more
    texts = ledger()
    retriever = FaissRetriever(split(texts))

    # The part that is mmspec's.
    llm = MmspecLLM(
        model="tiny-vlm",
        temperature=0,
        max_tokens=120,
        options={"passage_template": PASSAGE_TEMPLATE},
    )
    synthesizer = PassageSynthesizer(llm=llm)

    engine = RetrieverQueryEngine(retriever, response_synthesizer=synthesizer)
    report = Report("LlamaIndex: retrieved nodes are passages")
    for question, right in questions(texts):
        response = engine.query(question)
        sources = [found.node.metadata["source"] for found in response.source_nodes]
        report.show(question, str(response), right, sources, response.metadata["mmspec"])
    report.close()


if __name__ == "__main__":
    main()
