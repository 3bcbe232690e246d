"""Files of every kind -> their text."""

import json
import sys
from pathlib import Path

import pytest
from pdfs import pdf, reads_pdf

from mmspec.errors import InputError, MissingExtraError
from mmspec.inputs.documents import find_documents, read_documents
from mmspec.inputs.text_tokens import SEPARATOR, TextTokens
from mmspec.training.tiny.build import IMAGE, NUM_SPECIALS, VOCAB, build_tokenizer


def texts(path: Path, **how: str) -> list[str]:
    return [document.text for document in read_documents(path, **how)]


def test_text_and_markdown_are_read_as_they_are(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "c.py"):
        (tmp_path / name).write_bytes("\ufeff# Größe\n\n*x*\n".encode())
        (document,) = read_documents(tmp_path / name)
        assert document.text == "# Größe\n\n*x*\n"
        assert (document.id, len(document.pages)) == (str(tmp_path / name), 1)


def test_each_line_of_jsonl_is_a_document(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"text": "one"}, {"id": "second", "text": "two"}, {"id": 3, "text": "three"}]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    assert texts(path) == ["one", "two", "three"]
    assert [d.id for d in read_documents(path)] == [f"{path}#1", "second", "3"]
    path.write_text('{"body": "four"}\n')
    assert texts(path, field="body") == ["four"]
    with pytest.raises(InputError, match="line 1: no text in the field 'text': got body"):
        texts(path)
    path.write_text('{"text": "one"}\n{"text": \n')
    with pytest.raises(InputError, match="line 2: is not JSON"):
        texts(path)


def test_html_is_read_as_a_person_sees_it(tmp_path: Path) -> None:
    pytest.importorskip("html_text", reason="needs html-text: install mmspec[docs]")
    path = tmp_path / "a.html"
    path.write_bytes(
        b"<html><head><meta charset='iso-8859-1'><title>T</title><style>p{}</style></head><body>"
        b"<h1>Head</h1><p>one <b>bold</b>word\xe9</p><script>evil()</script>"
        b"<ul><li>x<li>y</ul></body></html>"
    )
    (text,) = texts(path)
    assert text == "T\n\nHead\n\none bold word\u00e9\n\nx\ny"
    path.write_bytes(b"")
    assert texts(path) == [""]


@reads_pdf
def test_pdf_is_read_page_by_page(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf("First page", "Second page"))
    (document,) = read_documents(path)
    assert [(page.number, page.text) for page in document.pages] == [
        (1, "First page"),
        (2, "Second page"),
    ]
    assert document.text == "First page\nSecond page"
    path.write_bytes(pdf("one hyphen-) Tj 0 -14 Td (ated word) Tj 0 -14 Td (and more"))
    assert texts(path) == ["one hyphenated word\nand more"]
    path.write_bytes(b"%PDF-1.4\nnothing more")
    with pytest.raises(InputError, match="cannot be read as PDF"):
        texts(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_what_is_not_utf8_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="is not UTF-8"):
        texts(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read"):
        texts(tmp_path / f"no-{name}")


@pytest.mark.parametrize(("suffix", "package"), [(".html", "html_text"), (".pdf", "pypdfium2")])
def test_a_missing_package_is_named(
    tmp_path: Path, suffix: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / f"a{suffix}").write_text("x")
    with pytest.raises(MissingExtraError, match="mmspec\\[docs\\]"):
        texts(tmp_path / f"a{suffix}")


def test_files_folders_and_globs_are_found_once_each_and_hidden_ones_when_named(
    tmp_path: Path,
) -> None:
    names = ("b.txt", "a.md", "deep/c.html", "deep/picture.png", "code.py")
    for name in (*names, "._a.md", "deep/.git/d.txt", ".notes/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")

    def found(*inputs: str) -> list[str]:
        paths = find_documents([str(tmp_path / given) for given in inputs])
        return [str(path.relative_to(tmp_path)) for path in paths]

    assert found(".") == ["a.md", "b.txt", "deep/c.html"]
    assert found("b.txt", ".", "code.py") == ["b.txt", "a.md", "deep/c.html", "code.py"]
    assert found("**/*.html") == ["deep/c.html"]
    assert found(".notes", "._a.md") == [".notes/e.txt", "._a.md"]
    (tmp_path / "empty").mkdir()
    for nothing in ("empty", "*.nope", "gone.txt"):
        with pytest.raises(InputError, match="no such file, folder or glob"):
            found(nothing)


# Tokens of plain text


def test_control_tokens_that_a_text_spells_out_become_separators() -> None:
    tokens = TextTokens(build_tokenizer())
    plain = [NUM_SPECIALS + byte for byte in b"ab"]
    assert tokens.encode("ab<image>ab") == [*plain, SEPARATOR, *plain]
    assert IMAGE not in tokens.encode("<image></s>")
    assert tokens.decode(plain) == "ab"
    assert tokens.vocab_size == VOCAB


def test_a_tokenizer_s_hash_is_that_of_the_tokens_it_makes() -> None:
    one, same, other = (build_tokenizer() for _ in range(3))
    other.add_tokens(["more"])
    same(["a", "long one"], padding=True, truncation=True, max_length=4)
    same.chat_template = "something else"
    assert TextTokens(one).hash() == TextTokens(same).hash()
    assert TextTokens(one).hash() != TextTokens(other).hash()
