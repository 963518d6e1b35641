"""The order of the house: which way imports point, what the archive holds, that shell files are clean."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("*.py"), *(ROOT / "extraction").rglob("*.py")])
# Each level may import the levels after it.
LEVELS = [
    {"extract_activations", "create_dataset_streams"},
    {"worker", "shuffle", "adapters", "parity"},
    {"checkpoint", "pipeline", "audit", "progress", "datasets", "reader", "attempts", "standing", "elastic",
     "status", "plan", "metrics", "report", "exports", "sampling"},
    {"streams", "tokenization", "packing", "forward", "shards", "writer", "objects", "compile_cache"},
    {"manifest", "parquet"},
    {"models", "storage"},
    {"config", "errors", "records", "faults", "preemption", "versions", "strict_json", "background", "prefetch",
     "selection", "logs", "commits", "positions", "stored"},
]
# Within a level, what uses what; everything else at one level stays apart.
BESIDE = {("audit", "checkpoint"), ("progress", "checkpoint"), ("pipeline", "packing"), ("writer", "packing"),
          ("models", "storage"), ("reader", "checkpoint"), ("objects", "shards"),
          ("attempts", "checkpoint"), ("standing", "checkpoint"), ("standing", "attempts"), ("elastic", "standing"),
          ("status", "checkpoint"), ("status", "standing"), ("parquet", "manifest"),
          ("metrics", "checkpoint"), ("report", "checkpoint"), ("report", "reader"), ("report", "audit"),
          ("exports", "reader"), ("exports", "shards"), ("adapters", "shuffle"),
          ("plan", "sampling"), ("report", "status"), ("report", "objects")}
PLAIN = LEVELS[-1]


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
        elif parts[0] in LEVELS[0] | {"checkpoint"}:
            names.add(parts[0])
    return names - {name_of(path)}


@pytest.mark.parametrize("path", [p for p in SOURCES if p != ROOT / "extraction/__init__.py"], ids=lambda p: p.name)
def test_imports_point_one_way(path):
    name = name_of(path)
    level = next(i for i, names in enumerate(LEVELS) if name in names)
    for imported in own_imports(path):
        below = next(i for i, names in enumerate(LEVELS) if imported in names)
        assert below > level or (name, imported) in BESIDE or imported in PLAIN, f"{name} imports {imported}"


@pytest.mark.parametrize("package, users", [
    ("jax", {"forward", "models", "plan"}), ("flax", {"forward", "models", "plan"}),
    ("google", {"storage"}), ("torch", {"parity", "adapters"}),
])
def test_only_these_import_it(package, users):
    for path in SOURCES:
        if package in {dotted.split(".")[0] for dotted in imports_of(path)}:
            assert name_of(path) in users, f"{path} imports {package}"


def test_nothing_imports_from_the_archive():
    for path in ROOT.rglob("*.py"):
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts):
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
