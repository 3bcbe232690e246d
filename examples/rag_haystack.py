"""Haystack: splitter, FAISS retriever, prompt builder, mmspec; offline.

python examples/rag_haystack.py

The retriever's documents go into the generator's own socket beside the messages. Then a scanned
page: the model reads the picture, an OCR tool's text does no more than draft.
"""

import base64
import io
import os
from random import Random

os.environ.setdefault("HAYSTACK_TELEMETRY_ENABLED", "False")  # read when it is imported

import torch
from haystack import Document, Pipeline, component
from haystack.components.builders import ChatPromptBuilder
from haystack.dataclasses import ChatMessage, ImageContent
from ledger import PASSAGE_TEMPLATE, NearestChunks, Report, chunks, ledger, questions

from mmspec.integrations.haystack import MmspecChatGenerator
from mmspec.training.tiny.data import receipt


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
    show_scan(generator, report)
    report.close()


def show_scan(generator: MmspecChatGenerator, report: Report) -> None:
    """The OCR tool takes each 8 for a B, and the model is not misled: it never sees that text."""
    page = receipt(Random("scan"), held_out=True)
    assert page.image is not None
    file = io.BytesIO()
    page.image.save(file, "PNG")
    picture = ImageContent(base64.b64encode(file.getvalue()).decode(), mime_type="image/png")
    read = Document(content=page.answer.replace("8", "B"), meta={"file_path": "an OCR tool"})
    question = "Transcribe the page."
    made = generator.run(
        [ChatMessage.from_user(content_parts=[picture, question])],
        documents=[read],
        generation_kwargs={"placement": "drafter", "max_tokens": 300},
    )
    (reply,) = made["replies"]
    report.show(question, reply.text or "", page.answer, ["an OCR tool"], reply.meta["mmspec"])


if __name__ == "__main__":
    main()
