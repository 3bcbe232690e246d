"""Whole scenarios at random, a few of them; `scripts/fuzz.py` draws more, for as long as it may."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from families import FAMILIES
from fuzz import run

from mmspec.config import CacheConfig, DecodeConfig, DrafterConfig
from mmspec.kv import PrefixStore
from mmspec.requests import Request
from mmspec.retrieval.generated import GeneratedStore
from mmspec.target import Target

# With drafters that are right at times: two engines, a rule that divides by q, an iterator that is
# left, a chat, a file, requests that are meddled with, weights that are written to, transformers.
SEEDS = (9107, 9126, 9127, 9130, 9133, 9149)
# And one of each other kind: the last two are float16 and bfloat16, of which one is bitwise.
KINDS = {"talk": 9205, "clients": 9208, "forms": 9203, "tenants": 9213, "frameworks": 9215}
ROUGH = (9214, 9215)
# How a model is loaded, what only a GPU does, and what stands in one list under two names.
NOT_DRAWN = {"path", "revision", "trust_remote_code", "cuda_graphs", "early_begin"}
NOT_DRAWN |= {"layers_skipped"}  # of `draft_forward`, `skipped`


def words_of(tree: ast.AST) -> Iterator[str]:
    """What a module may name an option by."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def options_of(section: type) -> Iterator[str]:
    kinds = get_type_hints(section)
    for one in fields(section):
        is_section = is_dataclass(kinds[one.name])
        yield from options_of(kinds[one.name]) if is_section else (one.name,)


@pytest.mark.parametrize("section", [Request, DecodeConfig, CacheConfig, DrafterConfig])
def test_every_option_is_drawn_by_some_scenario(section: type) -> None:
    modules = (Path(__file__).parent / "fuzz").glob("*.py")
    drawn = {word for path in modules for word in words_of(ast.parse(path.read_text("utf-8")))}
    assert not {*options_of(section)} - drawn - NOT_DRAWN


@pytest.mark.parametrize("seed", SEEDS)
def test_every_answer_of_a_scenario_is_that_of_plain_decoding_alone(seed: int) -> None:
    report = run(seed)
    assert not report.wrong, f"{report.title}: " + "; ".join(report.wrong)
    assert report.refused is None and report.accepted


@pytest.mark.parametrize(("kind", "seed"), [*KINDS.items(), *(("rough", s) for s in ROUGH)])
def test_so_it_is_where_requests_come_in_other_ways(kind: str, seed: int) -> None:
    report = run(seed, kind=kind)
    assert not report.wrong, f"{report.title}: " + "; ".join(report.wrong)
    if report.refused is not None:
        pytest.skip(report.refused)
    assert report.requests


@pytest.mark.parametrize("kind", ["rough", "tenants"])
def test_a_scenario_is_drawn_by_its_seed_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever families earlier scenarios took in."""
    alone = run(9203, kind=kind).title
    for number in range(200):
        monkeypatch.setitem(FAMILIES, f"another_{number}", FAMILIES["llama"])
    assert run(9203, kind=kind).title == alone


@pytest.mark.slow
def test_a_batch_that_is_killed_goes_on_where_it_was() -> None:
    report = run(0, kind="killed")
    assert not report.wrong, f"{report.title}: " + "; ".join(report.wrong)


def test_keys_that_namespaces_share_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    match, insert = PrefixStore.match, PrefixStore.insert
    monkeypatch.setattr(PrefixStore, "match", lambda self, _, *rest: match(self, "", *rest))
    monkeypatch.setattr(PrefixStore, "insert", lambda self, _, *rest: insert(self, "", *rest))
    assert any("its own tenant left" in each for each in run(9202, kind="tenants").wrong)


def test_drafts_that_namespaces_share_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    add, matches = GeneratedStore.add, GeneratedStore.matches

    def matching(self: GeneratedStore, query: Sequence[int], **options: Any) -> Any:
        return matches(self, query, **{**options, "namespace": ""})

    monkeypatch.setattr(GeneratedStore, "add", lambda self, tokens, **_: add(self, tokens))
    monkeypatch.setattr(GeneratedStore, "matches", matching)
    assert any("a tree with letters of" in each for each in run(9209, kind="tenants").wrong)


def test_a_commit_that_leaves_keys_where_they_were_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmspec.kv.cache.move_slots", lambda buffers, of, to: None)
    assert any("first mismatch at token" in each for each in run(9107).wrong)


def test_keys_that_are_kept_beyond_a_write_to_the_weights_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Target, "fingerprint", 0)
    assert any("first mismatch at token" in each for each in run(9678).wrong)
