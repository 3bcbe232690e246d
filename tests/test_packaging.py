"""The wheel and the source archive, built here without a network, hold mmspec and nothing else."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"


def build(source: Path, kind: str, out: Path) -> Path:
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(out)]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "is absent from the `packages` configuration" not in run.stderr + run.stdout
    return out / run.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves `build/` behind, and would pack an old one again."""
    copy = tmp_path_factory.mktemp("copy") / "mmspec"
    wanted = ["mmspec", "kv", "retrieval", "configs", "tests", "pyproject.toml", "MANIFEST.in"]
    copy.mkdir()
    for name in [*wanted, *(path.name for path in ROOT.glob("*.md")), "LICENSE", "constraints.txt"]:
        source = ROOT / name
        if source.is_dir() and not source.is_symlink():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy2(source, copy / name, follow_symlinks=False)
    return build(copy, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source archive, so that a file missing there is missing here as well."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        # Pythons before 3.11.4 know no filter.
        archive.extractall(
            unpacked, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {})
        )
    return build(next(unpacked.iterdir()), "wheel", tmp_path_factory.mktemp("wheel"))


def package_files() -> set[str]:
    """What git would hold of mmspec/: everything but caches."""
    files = (path for path in (ROOT / "mmspec").rglob("*") if path.is_file())
    return {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}


def test_the_sdist_holds_the_package_its_data_and_its_papers(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files() <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names
    assert not {name for name in names if name.split("/")[0] in ("kv", "retrieval", "configs")}


def test_the_wheel_holds_exactly_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in names if ".dist-info/" not in name} == package_files()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_wheel_holds_what_is_read_at_run_time(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in ("py.typed", "kv/__init__.py", "retrieval/__init__.py", "configs/default.yaml"):
        assert f"mmspec/{wanted}" in names
    for model in ("tiny-vlm", "nano-vlm"):
        for wanted in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
            assert f"mmspec/bundled/{model}/{wanted}" in names


PROBE = """
import mmspec.kv, mmspec.retrieval, mmspec.config as config, pathlib, sys
assert "kv" not in sys.modules and "retrieval" not in sys.modules
assert config.load_config("plain").drafter.name == "none"
root = pathlib.Path(config.__file__).parent.parent
for module in (mmspec.kv, mmspec.retrieval):
    assert pathlib.Path(module.__file__).parent.parent == root, module.__file__
print(root.parent)
"""


@pytest.mark.parametrize("started_in", ["repo root", "elsewhere"])
def test_an_installed_wheel_works(wheel: Path, tmp_path: Path, started_in: str) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    cwd = ROOT if started_in == "repo root" else tmp_path
    run = subprocess.run(
        [sys.executable, "-c", PROBE],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    # Python puts the folder it is started in first: in a checkout that is the checkout's package.
    assert Path(run.stdout.strip()) == (ROOT if started_in == "repo root" else site)
