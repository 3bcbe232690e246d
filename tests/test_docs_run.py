"""The code that README and docs show runs as it is shown, page by page: on the smallest bundled
model, with the names that the text around it takes for granted."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dflash_heads
import mtp_layers
import numpy as np
import pytest
import torch
from pdfs import pdf
from PIL import Image
from safetensors.torch import load_file, save_file
from test_docs import ROOT, blocks
from transformers import AutoModelForImageTextToText, AutoProcessor

import mmspec
from mmspec.admission import Admission
from mmspec.config import TrainConfig
from mmspec.inputs.text_tokens import TextTokens
from mmspec.requests import Request
from mmspec.retrieval import DatastoreWriter, Document
from mmspec.state import Prompt
from mmspec.target.load import resolve_path
from mmspec.training.heads.methods import METHODS

Names = dict[str, Any]
MODEL = "nano-vlm"
_ANY_MODEL = re.compile(r"path-or-hub-id|\borg/(?!head)[\w.-]+")
_SHORTER = {"[9, 11]": "[1]", "steps=2000": "steps=2"}  # MODEL has two layers
_FOUND = "The budget is 40 pears.\nThe minutes say that Bob sold 4 plums."
_OUTLINES = {"docs/dense.md": 74, "docs/serving.md": 14}
_NEEDS = {  # word in a block -> the package without which it is left out
    "langchain": "langchain_core",
    "ChatMmspec": "langchain_core",
    "llamaindex": "llama_index",
    "haystack": "haystack",
    "Pipeline": "haystack",
    "create_app": "starlette",
    "pdf_pages": "pypdfium2",
}


def pages() -> list[Any]:
    of_page: dict[str, list[str]] = {}
    for place, code in blocks("python"):
        page, line = place.rsplit(":", 1)
        if _OUTLINES.get(page) != int(line):
            of_page.setdefault(page, []).append(code)
    return [pytest.param(page, codes, id=page) for page, codes in of_page.items()]


@pytest.fixture(scope="module")
def engine() -> Iterator[mmspec.Engine]:
    yield mmspec.load(MODEL)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the code runs: with the files that it reads."""
    Image.new("RGB", (64, 64), "white").save(tmp_path / "invoice.png")
    (tmp_path / "minutes.md").write_text(_FOUND)
    (tmp_path / "report.pdf").write_bytes(pdf("first page", "second page"))
    (tmp_path / "mmspec").symlink_to(ROOT / "mmspec")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Retriever:
    """What a RAG pipeline has."""

    def invoke(self, question: str) -> list[str]:
        return [_FOUND]


def of_readme(engine: mmspec.Engine) -> Names:
    folder = resolve_path(MODEL)
    processor = AutoProcessor.from_pretrained(folder)
    asked = [Request(f"question {number}", max_new_tokens=4) for number in range(3)]
    return {
        "first": Image.new("RGB", (64, 64), "white"),
        "second": Image.new("RGB", (48, 64), "black"),
        "request1": asked[0],
        "request2": asked[1],
        "request3": asked[2],
        "prompts": [request.prompt for request in asked],
        "prompt": "What is the total?",
        "question": "What is the total?",
        "retriever": Retriever(),
        "scan": Image.new("RGB", (64, 64), "white"),
        "ocr_text": _FOUND,
        "model": AutoModelForImageTextToText.from_pretrained(folder),
        "inputs": processor(text="<s>What?", return_tensors="pt"),
    }


def of_batch(engine: mmspec.Engine) -> Names:
    return {"engine": engine, "requests": [Request("one", max_new_tokens=4), Request("two")]}


def of_datastore(engine: mmspec.Engine) -> Names:
    return {"texts": {"a.txt": _FOUND, "b.txt": "Anna bought 3 pears."}, "engine": engine}


def of_dense(engine: mmspec.Engine) -> Names:
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    tokens = TextTokens(tokenizer)
    kind: Names = {"tokenizer": tokens.hash(), "vocab_size": tokens.vocab_size}
    with DatastoreWriter.create("answers.store", **kind) as writer:
        writer.begin(inputs="answers")
        writer.append(Document(id="a", source="a", tokens=tokens.encode(_FOUND)))
        writer.commit()
    return {
        "engine": engine,
        "prompts": {"a": Prompt(torch.tensor(tokens.encode("What was sold?")))},
    }


def of_draft_model(engine: mmspec.Engine) -> Names:
    folder = resolve_path(MODEL)
    processor = AutoProcessor.from_pretrained(folder)
    return {
        "target": AutoModelForImageTextToText.from_pretrained(folder),
        "small": AutoModelForImageTextToText.from_pretrained(folder),
        "processor": processor,
        "its_processor": processor,
    }


def of_retrieval(engine: mmspec.Engine) -> Names:
    of_dense(engine)
    Path("answers.store").rename("notes.store")
    return {
        "passages": [_FOUND],
        "question": "How many?",
        "scan": Image.new("RGB", (64, 64)),
        "ocr_text": _FOUND,
    }


def of_rag(engine: mmspec.Engine) -> Names:
    of_retrieval(engine)  # notes.store
    os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when it is imported
    names: Names = {"question": "What was sold?", "retriever": Retriever()}
    if find_spec("llama_index"):
        names |= _of_llamaindex()
    if find_spec("haystack"):
        names |= _of_haystack()
    return names


def _of_llamaindex() -> Names:
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.core.retrievers import BaseRetriever
    from llama_index.core.schema import NodeWithScore, TextNode

    class Nodes(BaseRetriever):
        def invoke(self, question: str) -> list[str]:  # what LangChain's block asks
            return [_FOUND]

        def _retrieve(self, query_bundle: Any) -> list[NodeWithScore]:
            return [NodeWithScore(node=TextNode(text=_FOUND), score=1.0)]

    return {"RetrieverQueryEngine": RetrieverQueryEngine, "retriever": Nodes()}


def _of_haystack() -> Names:
    from haystack import Pipeline
    from haystack.components.builders import ChatPromptBuilder
    from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
    from haystack.dataclasses import ChatMessage
    from haystack.document_stores.in_memory import InMemoryDocumentStore

    def build() -> Pipeline:
        pipeline = Pipeline()
        asked = [ChatMessage.from_user("{{ question }}")]
        pipeline.add_component("prompt", ChatPromptBuilder(asked, required_variables="*"))
        pipeline.add_component("retriever", InMemoryBM25Retriever(InMemoryDocumentStore()))
        return pipeline

    return {"Pipeline": Pipeline, "pipeline": build(), "text": build().dumps()}


def of_heads(kind: str, *folders: str) -> Callable[[mmspec.Engine], Names]:
    """A page with an untrained head where its code looks for one."""

    def given(engine: mmspec.Engine) -> Names:
        target = engine.target
        counts = np.ones(target.vocab_size, np.int64)
        for folder in folders:
            METHODS[kind](target, TrainConfig(), counts).save(Path(folder), dtype=torch.float32)
        return {
            "target": target.model,
            "processor": AutoProcessor.from_pretrained(resolve_path(MODEL)),
        }

    return given


def of_mtp(engine: mmspec.Engine) -> Names:
    """The model in a folder that brings a layer, too, and another folder of the layer alone."""
    model = engine.target.model
    folder = shutil.copytree(resolve_path(MODEL), MODEL)
    own = mtp_layers.published(model, mtp_layers.drawn(model))
    weights = Path(folder, "model.safetensors")
    save_file({**load_file(weights), **own}, weights, metadata={"format": "pt"})
    Path("FOLDER").mkdir()
    mtp_layers.write(Path("FOLDER"), own)
    return {"model": model, "processor": AutoProcessor.from_pretrained(folder)}


def of_dflash(engine: mmspec.Engine) -> Names:
    model = engine.target.model
    for folder in ("org/head", "HEAD"):
        Path(folder).mkdir(parents=True)
        dflash_heads.write(
            dflash_heads.unfitted(model), Path(folder), dflash_heads.published(model)
        )
    return {
        "target": model,
        "processor": AutoProcessor.from_pretrained(resolve_path(MODEL)),
    }


def of_training(engine: mmspec.Engine) -> Names:
    lines = [json.dumps({"prompt": f"Repeat: {text}"}) for text in ("abc", "def", "ghi")]
    Path("prompts.jsonl").write_text("\n".join(lines))
    return {}


def of_serving(engine: mmspec.Engine) -> Names:
    coming = [Request("one", max_new_tokens=4), None, Request("two", max_new_tokens=4)]
    return {
        "engine": engine,
        "is_open": True,
        "next_request": lambda: coming.pop(0) if coming else None,
    }


GIVEN: dict[str, Callable[[mmspec.Engine], Names]] = {
    "README.md": of_readme,
    "docs/batch.md": of_batch,
    "docs/datastore.md": of_datastore,
    "docs/dense.md": of_dense,
    "docs/dflash.md": of_dflash,
    "docs/draft_model.md": of_draft_model,
    "docs/eagle.md": of_heads("eagle3", "org/head", "HEAD"),
    "docs/glide.md": of_heads("glide", "org/head-for-target-7b", "folder/with/a/head"),
    "docs/heads.md": of_training,
    "docs/medusa.md": of_heads("medusa", "org/heads", "path/to/heads"),
    "docs/mtp.md": of_mtp,
    "docs/rag.md": of_rag,
    "docs/retrieval.md": of_retrieval,
    "docs/serving.md": of_serving,
}


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers end after a few tokens."""
    room = Admission.room
    monkeypatch.setattr(Admission, "room", lambda *asked: min(room(*asked), 4))


@pytest.mark.parametrize(("page", "codes"), pages())
def test_the_code_of_a_page_runs(
    page: str, codes: list[str], engine: mmspec.Engine, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch)
    names = {"mmspec": mmspec, **(GIVEN[page](engine) if page in GIVEN else {})}
    for code in codes:
        if any(word in code and find_spec(name) is None for word, name in _NEEDS.items()):
            continue
        code = _ANY_MODEL.sub(MODEL, code)
        for shown, run in _SHORTER.items():
            code = code.replace(shown, run)
        exec(compile(code, page, "exec"), names)
