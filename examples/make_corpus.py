"""Make a corpus of the shape of FineWeb from the docstrings of the Python packages on this machine, without a network.

    python examples/make_corpus.py --output corpus/ --max-records 3000 --files 4

In: the .py files of the standard library and of site-packages, parsed but never imported. Out: Parquet files (zstd,
several row groups each) with FineWeb's nine columns. Short documents are the docstring of one function or class; long
ones are all docstrings of a module, up to thousands of tokens.

Guarantee: the same Python installation gives the same bytes; no two documents have the same text.
"""

import ast
import hashlib
import sysconfig
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

SHORTEST, LONGEST = 200, 40_000  # characters of a document
BIGGEST_SOURCE = 400_000  # bytes of a .py file
ROWS_PER_GROUP = 100
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def source_files() -> list[tuple[str, Path]]:
    """Return (name relative to its root, path) of all .py files, in an order that mixes the packages."""
    roots = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    files = {}
    for root in sorted(roots):
        for path in root.rglob("*.py"):
            name = str(path.relative_to(root))
            if not any(part in ("site-packages", "__pycache__") for part in path.relative_to(root).parts):
                files.setdefault(name, path)
    return sorted(files.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, docstring) of a module, its functions and classes; nothing if it is not Python."""
    if path.stat().st_size > BIGGEST_SOURCE:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    waiting: list[tuple[str, Any]] = [("", tree)]
    while waiting:
        name, node = waiting.pop()
        if text := ast.get_docstring(node):
            yield name, text
        inner = [child for child in node.body if isinstance(child, DEFINITIONS)]
        waiting.extend((f"{name}.{child.name}".strip("."), child) for child in reversed(inner))


def documents() -> Iterator[tuple[str, str]]:
    """Yield (name, text) of all documents: for each module one long document, then its longer docstrings one by one."""
    seen = set()
    for file, path in source_files():
        parts = list(docstrings(path))
        whole = "\n\n".join(f"{name}\n{text}".strip() for name, text in parts)[:LONGEST]
        for name, text in [("", whole), *parts[1:]]:
            text = text.encode("utf-8", "replace").decode()
            if len(text) >= SHORTEST and text not in seen:
                seen.add(text)
                yield f"{file}#{name}" if name else file, text


def row(name: str, text: str) -> dict[str, object]:
    """Return a row with FineWeb's columns, a function of the name and the text."""
    digest = hashlib.sha256(f"{name}\0{text}".encode()).digest()
    day = int.from_bytes(digest[16:18], "big") % 28 + 1
    return {
        "text": text,
        "id": f"<urn:uuid:{uuid.UUID(bytes=digest[:16], version=4)}>",
        "dump": "CC-MAIN-2024-10",
        "url": f"https://docs.example.org/{name}",
        "date": f"2024-02-{day:02d}T{digest[18] % 24:02d}:{digest[19] % 60:02d}:{digest[20] % 60:02d}Z",
        "file_path": f"s3://example/crawl-data/CC-MAIN-2024-10/segments/{digest[21]:03d}/warc/{name}.warc.gz",
        "language": "en",
        "language_score": round(0.65 + 0.35 * digest[22] / 255, 4),
        "token_count": max(1, round(len(text) / 4.2)),
    }


def write_files(rows: list[dict[str, object]], folder: Path, num_files: int) -> None:
    """Write rows in order to Parquet files whose names have the same order."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        part = rows[len(rows) * number // num_files : len(rows) * (number + 1) // num_files]
        table = pyarrow.Table.from_pylist(part)
        name = folder / f"{number:03d}_00000.parquet"
        pyarrow.parquet.write_table(table, name, compression="zstd", row_group_size=ROWS_PER_GROUP)


@click.command()
@click.option(
    "--output", required=True, type=click.Path(path_type=Path, file_okay=False), help="A new or empty folder."
)
@click.option("--max-records", default=3000, show_default=True, type=click.IntRange(1))
@click.option("--files", default=4, show_default=True, type=click.IntRange(1))
def main(output: Path, max_records: int, files: int) -> None:
    """Make a FineWeb-shaped Parquet corpus from the docstrings of installed packages."""
    if output.exists() and any(output.iterdir()):
        raise click.UsageError(f"--output {output} is not empty")
    rows = []
    for name, text in documents():
        rows.append(row(name, text))
        if len(rows) == max_records:
            break
    if len(rows) < files:
        raise click.UsageError(f"{len(rows)} records cannot fill {files} files")
    write_files(rows, output, files)
    tokens = sum(row["token_count"] for row in rows)
    click.echo(f"{output}: {len(rows)} records in {files} files, about {tokens} tokens")


if __name__ == "__main__":
    main()
