"""The order of the house: which way imports point, what the archive holds, that shell files are clean."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from extraction.datasets import DATASETS
from extraction.models.families import FAMILIES
from extraction.storage import BACKENDS

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("*.py"), *(ROOT / "extraction").rglob("*.py")])
TOP = {"extract_activations", "create_dataset_streams", "checkpoint"}
# Each level imports from those after it, and nothing from its own.
LEVELS = [
    {"extract_activations"},
    {"worker", "report"},
    {"create_dataset_streams", "plan", "status", "elastic", "adapters"},
    {"datasets", "sampling", "parity", "audit", "standing", "shuffle", "exports"},
    {"streams", "forward", "reader", "progress", "metrics", "attempts"},
    {"statistics", "column_chunks"},
    {"checkpoint", "models", "pipeline", "writer", "objects", "parquet"},
    {"manifest", "packing", "stored", "compile_cache", "reference_ids"},
    {"config", "commits", "storage", "selection", "tokenization", "positions", "shards", "preemption"},
    {"errors", "records", "faults", "logs", "not_finite", "prefetch", "strict_json", "versions", "columns"},
]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "extraction" and len(parts) > 1 else parts[0]


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


def own_imports(path: Path) -> set[str]:
    names = set()
    for dotted in imports_of(path):
        parts = dotted.split(".")
        if parts[0] == "extraction" and len(parts) > 1:
            names.add(parts[1])
        elif parts[0] in TOP:
            names.add(parts[0])
    return names - {name_of(path)}


@pytest.mark.parametrize("path", [p for p in SOURCES if p != ROOT / "extraction/__init__.py"], ids=lambda p: p.name)
def test_imports_point_one_way(path):
    name = name_of(path)
    level = next(i for i, names in enumerate(LEVELS) if name in names)
    above = set().union(*LEVELS[: level + 1])
    assert not own_imports(path) & above, f"{name} imports from its own level or one above"


@pytest.mark.parametrize(
    "package, users",
    [
        ("jax", {"forward", "models", "plan"}),
        ("flax", {"forward", "models", "plan"}),
        ("google", {"storage"}),
        ("torch", {"parity", "adapters"}),
    ],
)
def test_only_these_import_it(package, users):
    for path in SOURCES:
        if package in {dotted.split(".")[0] for dotted in imports_of(path)}:
            assert name_of(path) in users, f"{path} imports {package}"


@pytest.mark.parametrize("registry", [DATASETS, FAMILIES, BACKENDS])
def test_what_a_registry_lists_stays_apart(registry):
    listed = {place.partition(":")[0] for place in registry.values()}
    for module in listed:
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert not imports_of(path) & listed, f"{module} imports another of its kind"


def test_only_a_storage_knows_how_its_locations_begin():
    for path in SOURCES:
        if name_of(path) != "storage":
            assert not re.search(r'(startswith|removeprefix|partition)\(\(?f?"\w+://', path.read_text()), path


def test_levels_and_the_map_of_the_library_have_every_module():
    modules = {name_of(path) for path in SOURCES} - {"__init__"}
    assert sorted(modules) == sorted(name for level in LEVELS for name in level)
    described = re.findall(r"`(\w+)`", ast.get_docstring(ast.parse((ROOT / "extraction/__init__.py").read_text())))
    assert sorted(described) == sorted(modules - TOP)


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


def test_shell_files_are_clean():
    files = [*ROOT.glob("*.sh"), *ROOT.glob("deploy/*.s*"), ROOT / ".ci/run"]
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert checker, "shellcheck is part of the test extra"
    result = subprocess.run([checker, *files], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
