"""The house: links at the top level, and imports that point one way."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mmspec"

# Each part may import its own floor and those below it, never one above.
FLOORS = (
    {
        "kv", "retrieval", "beginnings", "callbacks", "daemon_steps", "devices", "errors",
        "kernels", "uploads", "words",
    },
    {
        "attention", "build_sampler", "calibration", "config", "draft_guide", "encoders", "inputs",
        "logprobs", "noise", "noise_kernels", "nucleus", "nucleus_kernels", "params", "penalties",
        "pieces", "prefixes", "reads", "sampling", "state", "stats", "stream", "tree",
        "verify",
    },
    {"controller", "drafters", "indexing", "plan", "target"},
    {"drafting"},
    {"row"},
    {"foresight", "reuse"},
    {"prefiller"},
    {"overlap"},
    {"decoder", "requests", "result_html"},
    {"admission", "answers", "reading"},
    {"chat", "engine"},
    {"build_drafters", "build_target", "running_loop"},
    {"build"},
    {"__main__", "batch", "bench", "check", "cli", "gpu_check", "integrations", "serving",
     "sweep", "training"},
)  # fmt: skip
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of everything that a file imports, at its top or inside a function."""
    inside = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: -node.level]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_parts(path: Path) -> set[str]:
    names = {name for name in imported_modules(path) if f"{name}.".startswith("mmspec.")}
    return {f"{name}.".split(".")[1] for name in names}  # "": the package itself


@pytest.mark.parametrize("name", ["kv", "retrieval", "configs"])
def test_the_top_level_folder_is_a_relative_link_into_the_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert link.readlink() == Path("mmspec") / name
    assert link.is_dir()


@pytest.mark.parametrize("ground", ["kv", "retrieval"])
def test_the_ground_floor_imports_nothing_from_the_rest(ground: str) -> None:
    for path in MODULES:
        if part_of(path) == ground:
            beyond = imported_parts(path) - {ground, "errors", "kernels", "uploads"}
            assert not beyond, f"{path.relative_to(ROOT)} imports mmspec.{'/'.join(beyond)}"


def test_imports_point_one_way() -> None:
    for path in MODULES:
        part = part_of(path)
        assert part in FLOOR, f"{path.relative_to(ROOT)}: give {part!r} a floor in FLOORS"
        for other in imported_parts(path):
            # The package itself stands on top of all floors but the last.
            floor = FLOOR.get(other, len(FLOORS) - 1)
            assert floor <= FLOOR[part], f"{path.relative_to(ROOT)} imports mmspec.{other}"


def test_an_import_is_found_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "mmspec" / "kv" / "cache.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import mmspec.tree\nfrom mmspec import noise\nfrom ..engine import Engine\n"
        "from . import layer\ndef f():\n    from mmspec.cli import main\nimport mmspecial, mmspec\n"
    )
    assert imported_parts(path) == {"tree", "noise", "engine", "kv", "cli", ""}
