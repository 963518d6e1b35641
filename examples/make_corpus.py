"""A FineWeb-shaped Parquet corpus from the docstrings of installed packages.

In: the Python files of this interpreter's library and site-packages, parsed and never run. Out: DIR/corpus-NNN.parquet
with FineWeb's nine columns. The same packages give the same bytes.

    python examples/make_corpus.py --output DIR --max-records 3000 --files 4
"""

import ast
import hashlib
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 100
SHORTEST = 200  # characters


def python_files() -> list[tuple[str, Path]]:
    """(name relative to its library, path), in the order of names' hashes, so that any prefix is a mixture."""
    found = {}
    for library in ("stdlib", "purelib"):
        root = Path(sysconfig.get_paths()[library])
        for path in root.rglob("*.py"):
            name = str(path.relative_to(root))
            if not {"test", "tests", "__pycache__", "site-packages", "idlelib"} & set(Path(name).parts):
                found[name] = path
    return sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).hexdigest())


def docstrings(path: Path) -> str:
    """All docstrings of a file, in order, as one document."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(text for text in texts if text).encode("utf-8", "replace").decode()


def documents(max_records: int) -> Iterator[dict]:
    """Rows with FineWeb's columns; each text once."""
    seen = set()
    for name, path in python_files():
        text = docstrings(path)
        digest = hashlib.sha256(text.encode()).hexdigest()
        if len(text) < SHORTEST or digest in seen:
            continue
        seen.add(digest)
        yield {
            "text": text, "id": f"<urn:sha256:{digest[:32]}>", "dump": "docstrings", "url": f"file:///{name}",
            "date": "2000-01-01T00:00:00Z", "file_path": name, "language": "en", "language_score": 1.0,
            "token_count": len(text) // 4,
        }
        if len(seen) == max_records:
            return


@click.command()
@click.option("--output", required=True, type=click.Path(path_type=Path))
@click.option("--max-records", default=3000, type=click.IntRange(1))
@click.option("--files", default=4, type=click.IntRange(1))
def main(output: Path, max_records: int, files: int) -> None:
    """Write the corpus."""
    rows = list(documents(max_records))
    output.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        part = rows[number * len(rows) // files : (number + 1) * len(rows) // files]
        pq.write_table(pa.Table.from_pylist(part), output / f"corpus-{number:03d}.parquet", row_group_size=ROW_GROUP,
                       compression="zstd")
    print(f"{output}: {len(rows):,} documents, {sum(len(row['text']) for row in rows):,} characters, {files} files")


if __name__ == "__main__":
    main()
