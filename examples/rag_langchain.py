"""LangChain: splitter, FAISS retriever, prompt, mmspec; offline.

python examples/rag_langchain.py

The retriever's documents go to the model as passages: mmspec writes them into the prompt, control
tokens made harmless, and drafts from them.
"""

from typing import Any

import torch
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from ledger import PASSAGE_TEMPLATE, NearestChunks, Report, chunks, ledger, questions
from pydantic import PrivateAttr

from mmspec.integrations.langchain import ChatMmspec


class FaissRetriever(BaseRetriever):
    """The nearest documents."""

    documents: list[Document]
    _index: NearestChunks = PrivateAttr()

    def model_post_init(self, context: Any, /) -> None:
        self._index = NearestChunks([document.page_content for document in self.documents])

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return [self.documents[number] for number, _ in self._index.search(query)]


def split(texts: dict[str, str]) -> list[Document]:
    return [
        Document(chunk, metadata={"source": name})
        for name, text in texts.items()
        for chunk in chunks(text)
    ]


def main() -> None:
    torch.set_num_threads(1)  # the bundled model is too small to gain from more
    texts = ledger()
    retriever = FaissRetriever(documents=split(texts))
    prompt = ChatPromptTemplate.from_messages([("human", "{question}")])

    # The part that is mmspec's.
    llm = ChatMmspec(
        model="tiny-vlm",
        temperature=0,
        max_tokens=120,
        options={"passage_template": PASSAGE_TEMPLATE},
    )
    answer = RunnableLambda(
        lambda found: llm.invoke(prompt.invoke(found), passages=found["documents"])
    )

    chain = RunnableParallel(
        question=RunnablePassthrough(), documents=retriever
    ) | RunnablePassthrough.assign(answer=answer)
    report = Report("LangChain: retrieved documents are passages")
    for question, right in questions(texts):
        found = chain.invoke(question)
        message = found["answer"]
        sources = [document.metadata["source"] for document in found["documents"]]
        stats = message.response_metadata["mmspec"]
        report.show(question, message.text, right, sources, stats)
    report.close()

    print("Streamed, from a prompt that the chain wrote itself:")
    question, _ = questions(texts)[0]
    documents = retriever.invoke(question)
    context = "\n".join(document.page_content for document in documents)
    for chunk in llm.stream([HumanMessage(f"{context}\n{question}")], passages=documents):
        print(chunk.text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
