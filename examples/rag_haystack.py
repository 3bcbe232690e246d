"""Haystack: splitter, FAISS retriever, prompt builder, mmspec; offline.

python examples/rag_haystack.py

The retriever's documents go into the generator's own socket beside the messages.
"""

import os

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # read when it is imported

import torch
from haystack import Document, Pipeline, component
from haystack.components.builders import ChatPromptBuilder
from haystack.dataclasses import ChatMessage
from ledger import PASSAGE_TEMPLATE, NearestChunks, Report, chunks, ledger, questions

from mmspec.integrations.haystack import MmspecChatGenerator


@component
class FaissRetriever:
    """The nearest documents."""

    def __init__(self, documents: list[Document]) -> None:
        self._documents = documents
        self._index = NearestChunks([document.content or "" for document in documents])

    @component.output_types(documents=list[Document])
    def run(self, query: str) -> dict[str, list[Document]]:
        return {"documents": [self._documents[number] for number, _ in self._index.search(query)]}


def split(texts: dict[str, str]) -> list[Document]:
    return [
        Document(content=chunk, meta={"file_path": name})
        for name, text in texts.items()
        for chunk in chunks(text)
    ]


def main() -> None:
    torch.set_num_threads(1)  # the bundled model is too small to gain from more
    texts = ledger()
    pipeline = Pipeline()
    pipeline.add_component("retriever", FaissRetriever(split(texts)))
    template = [ChatMessage.from_user("{{ question }}")]
    pipeline.add_component("prompt", ChatPromptBuilder(template, required_variables="*"))

    # The part that is mmspec's.
    wishes = {"temperature": 0, "max_tokens": 120, "passage_template": PASSAGE_TEMPLATE}
    generator = MmspecChatGenerator("tiny-vlm", generation_kwargs=wishes)
    pipeline.add_component("generator", generator)
    pipeline.connect("retriever.documents", "generator.documents")

    pipeline.connect("prompt.prompt", "generator.messages")
    report = Report("Haystack: retrieved documents are passages")
    for question, right in questions(texts):
        given = {"retriever": {"query": question}, "prompt": {"question": question}}
        made = pipeline.run(given, include_outputs_from={"retriever"})
        (reply,) = made["generator"]["replies"]
        sources = [found.meta["file_path"] for found in made["retriever"]["documents"]]
        report.show(question, reply.text or "", right, sources, reply.meta["mmspec"])
    report.close()


if __name__ == "__main__":
    main()
