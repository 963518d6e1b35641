"""The order of the house: which way imports point, what the archive holds, that shell files are clean."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import extraction
from extraction.core import errors
from extraction.datasets import DATASETS
from extraction.models.families import FAMILIES
from extraction.storage import BACKENDS

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("*.py"), *(ROOT / "extraction").rglob("*.py")])
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
LAYERS = ("core", "storage", "format", "streams", "batching", "models")  # each imports from those before it
BELOW = {layer: set(LAYERS[:place]) for place, layer in enumerate(LAYERS)} | {
    "datasets": {"core", "storage", "format", "streams", "batching"},
    "checkpoint": {"core", "storage", "format"},
    "worker": {*LAYERS, "checkpoint"},
    "read": {*LAYERS},
    "audit": {*LAYERS},
    "tools": {*LAYERS, "read", "audit", "worker"},
    "extract_texts": {"core", "storage", "streams", "worker", "read"},
    "create_dataset_streams": {"core", "storage", "streams", "datasets"},
    "extract_activations": {"core", "worker", "read", "audit", "tools"},
}


def folder_of(dotted: str) -> str:
    """The layer of a module: the folder under `extraction`, or a script of the root."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "extraction" and len(parts) > 1 else parts[0]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything a file imports, relative imports made absolute."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            found.add(".".join([*base, *([node.module] if node.module else [])]))
            if node.module is None:
                found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


@pytest.mark.parametrize("path", [path for path in SOURCES if folder_of(name_of(path)) in BELOW], ids=name_of)
def test_imports_point_one_way(path):
    own = folder_of(name_of(path))
    ours = [dotted for dotted in imports_of(path) if dotted.split(".")[0] in {"extraction", *SCRIPTS}]
    found = {folder_of(dotted) for dotted in ours} & BELOW.keys() - {own}
    assert found <= BELOW[own], f"{name_of(path)} imports from {found - BELOW[own]}"


def test_every_source_has_its_layer():
    assert {folder_of(name_of(path)) for path in SOURCES} == BELOW.keys() | {"extraction"}


def test_the_picture_of_the_folders_has_the_imports_of_the_code():
    """An import that follows from others is not drawn."""
    used: dict[str, set[str]] = {folder: set() for folder in BELOW}
    for path in SOURCES:
        own = folder_of(name_of(path))
        if own in BELOW:
            ours = {dotted for dotted in imports_of(path) if dotted.split(".")[0] in {"extraction", *SCRIPTS}}
            used[own] |= {folder_of(dotted) for dotted in ours} & BELOW.keys() - {own}

    def below(folder: str) -> set[str]:
        return used[folder].union(*map(below, used[folder]))

    arrows = {(own, to) for own in used for to in used[own] if not any(to in below(via) for via in used[own] - {to})}
    page = (ROOT / "docs/architecture.md").read_text()
    assert set(re.findall(r"^    (\w+) --> (\w+)$", page, re.MULTILINE)) == arrows


def test_of_the_worker_tools_use_the_flags_and_the_resolver():
    for path in (ROOT / "extraction/tools").rglob("*.py"):
        used = {dotted for dotted in imports_of(path) if folder_of(dotted) == "worker"}
        assert used <= {"extraction.worker.flags", "extraction.worker.resolve"}, path


@pytest.mark.parametrize(
    "package, users",
    [
        ("jax", "extraction.models extraction.worker extraction.tools.plan"),
        ("flax", "extraction.models extraction.worker"),
        ("google", "extraction.storage"),
        ("torch", "extraction.tools.parity extraction.read.torch"),
    ],
)
def test_only_these_import_it(package, users):
    for path in SOURCES:
        if package in {dotted.split(".")[0] for dotted in imports_of(path)}:
            assert f"{name_of(path)}.".startswith(tuple(f"{user}." for user in users.split())), path


@pytest.mark.slow
def test_the_public_api_is_there_and_its_import_is_light():
    """Heavy packages are for those who use them: a program that only reads needs neither jax nor torch."""
    heavy = {"jax", "flax", "transformers", "torch", "datasets", "numpy", "google"}
    code = f"import sys, extraction; print(sorted({heavy} & sys.modules.keys()))"
    reading = "from extraction import *; print(ActivationReader, ShuffledReader, DamagedData.exit_code)"
    light, used = (
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for code in (code, reading)
    )
    assert light == "[]\n"
    assert used.split() == ["<class", "'extraction.read.reader.ActivationReader'>", "<class",
                            "'extraction.read.shuffle.ShuffledReader'>", "65"]  # fmt: skip
    assert set(extraction.__all__) >= {name for name, kind in vars(errors).items() if isinstance(kind, type)}


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "extraction.__version__"}
    assert f"## {extraction.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("registry", [DATASETS, FAMILIES, BACKENDS])
def test_what_a_registry_lists_stays_apart(registry):
    listed = {place.partition(":")[0] for place in registry.values()}
    for module in listed:
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert not imports_of(path) & listed, f"{module} imports another of its kind"


def test_no_two_classes_share_a_name():
    found: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(name_of(path))
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}


def test_only_a_storage_knows_how_its_locations_begin():
    for path in SOURCES:
        if folder_of(name_of(path)) != "storage":
            assert not re.search(r'(startswith|removeprefix|partition)\(\(?f?"\w+://', path.read_text()), path


def test_the_map_of_the_library_has_every_folder():
    described = re.findall(
        r"^`(\w+)`", ast.get_docstring(ast.parse((ROOT / "extraction/__init__.py").read_text())), re.M
    )
    assert sorted(described) == sorted(path.parent.name for path in (ROOT / "extraction").glob("*/__init__.py"))


def public(tree: ast.Module) -> list[ast.AST]:
    """The functions and classes of a module, and the methods of these, that have no underscore before them."""
    top = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    inner = [node for kind in top if isinstance(kind, ast.ClassDef) for node in kind.body]
    return [node for node in top + inner if not getattr(node, "name", "_").startswith("_")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)
def test_what_others_may_use_is_typed_and_described(path):
    tree = ast.parse(path.read_text())
    for node in public(tree):
        if isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [one.arg for one in given if one.annotation is None and one.arg not in ("self", "cls")]
            assert node.returns is not None and not untyped, f"{node.name} {untyped}"
        assert ast.get_docstring(node) or node not in tree.body, f"{node.name} has no docstring"


def test_nothing_imports_from_the_archive():
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).parts
        if parts[0] != "archive" and not any(part.startswith(".") for part in parts):
            assert not any(dotted.split(".")[0] == "archive" for dotted in imports_of(path))


def test_each_entry_of_the_archive_exists():
    table = [line for line in (ROOT / "archive/README.md").read_text().splitlines() if line.startswith("|")]
    assert table[0].split("|")[1:6] == [" what ", " when ", " replaced by ", " why ", " delete after "]
    for line in table[2:]:
        assert (ROOT / "archive" / line.split("|")[1].strip().strip("`")).exists()


@pytest.mark.slow
def test_shell_files_are_clean():
    files = [*ROOT.glob("*.sh"), *ROOT.glob("deploy/*.s*"), ROOT / ".ci/run"]
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert checker, "shellcheck is part of the test extra"
    result = subprocess.run([checker, *files], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
