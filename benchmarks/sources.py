"""What it costs to make streams: records and tokens per second of each kind of source, and memory of a large filter.

In: nothing; small sources of repeated texts, and `--gb` of Parquet without compression, made on the disk and deleted.
Out: one line of JSON. Each command is a process of its own, whose CPU seconds (all threads) and largest resident memory
the system counts; tokens are those of `examples/tiny-lm`. The filter keeps 10% of the rows, some in each row group.

    python benchmarks/sources.py --output benchmarks/results/sources.json
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.outcome import about, give, gives_results, note  # noqa: E402
from extraction.batching.tokenizer import RecordTokenizer  # noqa: E402
from extraction.format.records import Record  # noqa: E402
from tests.helpers.chat_templates import CHATML  # noqa: E402

ROOT = Path(__file__).parents[1]
# The largest memory of a process includes what its parent had when it was started, so that a small one starts it.
METER = """import json, os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(pid, 0)
print(json.dumps([status, used.ru_utime + used.ru_stime, used.ru_maxrss]))"""
MODEL, POOL, GROUP, RECORDS = ROOT / "examples/tiny-lm", 500, 1000, 20_000


def texts_of(num_words: int) -> list[str]:
    """A pool of documents: runs of words of the documentation, from random places."""
    words = " ".join(path.read_text() for path in sorted(ROOT.glob("docs/*.md"))).split()
    starts = np.random.default_rng(0).integers(0, len(words) - num_words, POOL).tolist()
    return [" ".join(words[start : start + num_words]) for start in starts]


def write_large(folder: Path, gigabytes: float) -> int:
    """Files of about 1 GB each; return how many records."""
    pool, written, records = texts_of(500), 0, 0
    schema = pa.schema({"id": pa.string(), "text": pa.string(), "score": pa.int64()})
    while written < gigabytes * 1e9:
        path = folder / f"{records:012d}.parquet"
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            while path.stat().st_size < 1e9:
                numbers = range(records, records + GROUP)
                columns = [[f"urn:{n}" for n in numbers], [pool[n % POOL] for n in numbers], [n % 10 for n in numbers]]
                writer.write_table(pa.table(columns, schema=schema))
                records += GROUP
        written += path.stat().st_size
    return records


def run(*arguments: object) -> dict:
    """What one command of create_dataset_streams.py costs."""
    words = [sys.executable, "-c", METER, sys.executable, ROOT / "create_dataset_streams.py", *arguments]
    begin = time.perf_counter()
    told = subprocess.run([*map(str, words)], check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    status, cpu, kib = json.loads(told[-1])
    if status:
        raise SystemExit(f"{' '.join(map(str, arguments))}: status {status}")
    seconds = time.perf_counter() - begin
    return {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "peak_mib": kib // 1024}


def small_sources(folder: Path) -> dict[str, list[object]]:
    """Write the sources of `RECORDS` records each; return the command for each."""
    pool = texts_of(500)
    texts = [pool[n % POOL] for n in range(RECORDS)]
    ids = [f"urn:{n}" for n in range(RECORDS)]
    (found,) = RecordTokenizer(MODEL).tokenize([Record(0, "", pool[0], None)])
    chats = [[{"role": "user", "content": text[:200]}, {"role": "assistant", "content": text[200:]}] for text in texts]
    columns = {"id": ids, "text": texts, "messages": chats, "input_ids": [found.tokens.tolist()] * RECORDS}
    for name in ("text", "messages", "input_ids"):
        pq.write_table(pa.table({"id": ids, name: columns[name]}), folder / f"{name}.parquet", row_group_size=GROUP)
    with (folder / "text.jsonl").open("w") as file:
        file.writelines(json.dumps({"id": one, "text": text}) + "\n" for one, text in zip(ids, texts, strict=True))
    model = shutil.copytree(MODEL, folder / "model")
    settings = json.loads((model / "tokenizer_config.json").read_bytes()) | {"chat_template": CHATML}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return {
        "fineweb": ["fineweb", "--source", folder / "text.parquet"],
        "text, Parquet": ["text", "--source", folder / "text.parquet", "--id-column", "id"],
        "text, JSON lines": ["text", "--source", folder / "text.jsonl", "--id-column", "id"],
        "chat": ["chat", "--source", folder / "messages.parquet", "--id-column", "id", "--model", model],
        "tokens": ["tokens", "--source", folder / "input_ids.parquet", "--id-column", "id"],
    }


def rates_of(folder: Path) -> dict[str, dict]:
    """Records and tokens for each second, of the clock and of the processor."""
    found = {}
    commands = small_sources(folder)
    pool = [Record(number, "", text, None) for number, text in enumerate(texts_of(500))]
    tokens = sum(len(one.tokens) for one in RecordTokenizer(MODEL).tokenize(pool))
    for name, command in commands.items():
        used = run(*command, "--num-streams", 4, "--output", folder / f"out-{name}")
        each = {"records": RECORDS, "tokens": tokens * RECORDS // POOL}
        found[name] = used | {
            f"{what}_per_{unit}": round(number / used[key])
            for what, number in each.items()
            for unit, key in (("s", "seconds"), ("cpu_s", "cpu_seconds"))
        }
        note({name: found[name]})
    return found


@click.command()
@click.option("--gb", default=10.0, show_default=True, help="Size of the Parquet files that are filtered.")
@click.option("--dataset", "datasets", multiple=True, default=["fineweb", "text"], help="Commands that filter them.")
@gives_results
def main(gb: float, datasets: tuple[str, ...], as_json: bool, output: Path | None) -> None:
    """Measure."""
    results: dict = {}
    with tempfile.TemporaryDirectory() as name:
        results["sources"] = rates_of(Path(name))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "in")
        folder.mkdir()
        records = write_large(folder, gb)
        size = sum(path.stat().st_size for path in folder.iterdir())
        results["filter"] = {"bytes": size, "records": records, "where": "score >= 9"}
        for dataset in datasets:
            where = ["--where", "score >= 9", "--id-column", "id"]
            used = run(dataset, "--source", folder, *where, "--num-streams", 8, "--output", Path(name, dataset))
            results["filter"][dataset] = used | {"mb_per_cpu_s": round(size / 1e6 / used["cpu_seconds"])}
            note({dataset: results["filter"][dataset]})
    results |= about("pyarrow")
    give(results, json.dumps(results, indent=2), as_json, output)


if __name__ == "__main__":
    main()
