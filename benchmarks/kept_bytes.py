"""Shows that a change of the code changes nothing: what runs store, to the byte, and what `verify` says of damage.

    python benchmarks/kept_bytes.py keep FILE       before the change
    python benchmarks/kept_bytes.py compare FILE    after it: a line for each difference, exit 1 if there is one

In: the project's two command lines, and nothing else of it. Out: FILE, one JSON object: for each combination of
`kept_cases.py` what its commands said, with which exit code, and what they stored: of JSON the content without
KEYS_OF_A_START, of a batch file the sha256, the metadata and the sha256 of each array, of anything else the sha256.
Guarantee: the same code gives the same FILE on the same machine with the same packages; other machines round otherwise.
Cost: some ten minutes of CPU, two commands at a time, each a fork of a process that has imported the libraries.
"""

import fcntl
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from itertools import product, zip_longest
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.kept_cases import BASE, DAMAGES, STREAMS, Run, make_models, runs, write_sources  # noqa: E402

FOLDER = Path(tempfile.gettempdir()) / "kept-bytes"  # the same for every call, since manifests name their source
KEYS_OF_A_START = {"attempt", "host", "started", "versions", "seconds", "generation", "begun", "tokens_per_second"}
ATTEMPT = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
WORDS_OF_JSON = re.compile(r'"(?:\\.|[^"\\])*"|[^\s,:{}\[\]"]+')  # what is between them is its layout
EXTRACT, CREATE = "extract_activations", "create_dataset_streams"
FORKS = multiprocessing.get_context("forkserver")

Kept = dict[str, dict]  # of one combination: {"said": {command: lines}, "stored": {name: content}}


# ---------------------------------------------------------------------------------------------- commands


def become(script: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    """Run a command line of the project in this process, which was forked for it."""
    for descriptor, ending in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{ending}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
    os.environ.update(environment)
    sys.argv = [script, *arguments]
    importlib.import_module(script).main()


def say(log: Path, script: str, arguments: Iterable[object], **environment: str) -> list[str]:
    """What a command says: its exit code and the lines of stdout; without any, its error and what follows on stderr."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = FORKS.Process(target=become, args=(script, [str(word) for word in arguments], environment, str(log)))
    process.start()
    process.join()
    out, err = (ATTEMPT.sub("ATTEMPT", Path(f"{log}.{ending}").read_text()) for ending in ("out", "err"))
    error = re.search(r"^error: .*", err, re.IGNORECASE | re.MULTILINE | re.DOTALL)
    return [f"exit {process.exitcode}", *(out or (error[0] if error else "")).splitlines()]


def verified(log: Path, output: Path) -> dict[str, list[str]]:
    """What both forms of `verify` say."""
    forms = (["verify"], ["verify", "--deep"])
    return {" ".join(words): say(log / words[-1], EXTRACT, [*words, output]) for words in forms}


def run_combination(name: str, run: Run) -> Kept:
    """A worker, or several, to their end."""
    output, log = FOLDER / "runs" / name, FOLDER / "logs" / name
    command = ["run", "--model", FOLDER / "models" / run.model, "--streams", FOLDER / "streams" / run.streams,
               "--output", output, "--compile-cache", FOLDER / "compiled",
               *BASE.split(), *run.hooks.split(), *run.flags.split()]  # fmt: skip
    said = {}
    for number, (worker, start) in enumerate(product(run.workers, run.starts)):
        title = f"start {number} {worker}"
        said[title] = say(log / title, EXTRACT, [*command, *worker.split()], **start)
    return {"said": said | verified(log, output), "stored": stored(output)}


def make_streams(name: str) -> Kept:
    """The streams of one command, and what `check` says of them."""
    output, log = FOLDER / "streams" / name, FOLDER / "logs" / f"streams {name}"
    create = [*STREAMS[name].format(source=FOLDER / "sources").split(), "--output", output]
    commands = {"create": create, "again": create, "check": ["check", output]}
    said = {word: say(log / word, CREATE, words) for word, words in commands.items()}
    return {"said": said, "stored": stored(output)}


def damage(name: str) -> Kept:
    """What `verify` says of a copy of a finished run that was damaged."""
    output = shutil.copytree(FOLDER / "runs/two workers", FOLDER / "damaged" / name)
    try:
        DAMAGES[name](output)
    except (KeyError, FileNotFoundError) as error:
        return {"said": {"damage": [f"not possible any more: {error!r}"]}, "stored": {}}
    return {"said": verified(FOLDER / "logs" / f"damaged {name}", output), "stored": {}}


# ---------------------------------------------------------------------------------------------- what is kept


def stored(output: Path) -> dict[str, object]:
    """Every file below a folder by its name; those whose names differ by the attempt's id alone are counted through."""
    found: dict[str, object] = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        name = ATTEMPT.sub("ATTEMPT", str(path.relative_to(output)))
        found[name + "+" * sum(other.rstrip("+") == name for other in found)] = content_of(path)
    return found


def content_of(path: Path) -> object:
    """What is kept of a file."""
    data = path.read_bytes()
    if path.suffix == ".json":
        text = ATTEMPT.sub("ATTEMPT", data.decode())
        layout = hashlib.sha256(WORDS_OF_JSON.sub("", text).encode()).hexdigest()[:16]
        return {"layout": layout, "content": without_start(json.loads(text))}
    digest = {"sha256": hashlib.sha256(data).hexdigest()}
    return digest | arrays_of(data) if path.suffix == ".safetensors" else digest


def arrays_of(data: bytes) -> dict[str, object]:
    """The metadata of a batch file, and of each array its dtype, shape and sha256, in the order of the file."""
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    found: dict[str, object] = {"metadata": header.pop("__metadata__", None)}
    for name, facts in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        first, last = facts["data_offsets"]
        digest = hashlib.sha256(data[begin + first : begin + last]).hexdigest()
        found[name] = {"dtype": facts["dtype"], "shape": facts["shape"], "sha256": digest}
    return found


def without_start(value: object) -> object:
    """JSON without what differs from one start of a worker to the next."""
    if isinstance(value, dict):
        return {key: without_start(inner) for key, inner in value.items() if key not in KEYS_OF_A_START}
    return [without_start(inner) for inner in value] if isinstance(value, list) else value


def keep_all(only: str) -> dict[str, Kept]:
    """Run every combination whose name matches; {its name: what it said and stored}."""
    combinations = {name: run for name, run in runs().items() if fnmatch(name, only)}
    damages = [name for name in DAMAGES if fnmatch(f"damaged {name}", only)]
    if not combinations and not damages:
        raise click.UsageError(f"--only {only}: no combination has such a name")
    whole = {"two workers": runs()["two workers"]} if damages else {}
    with open(f"{FOLDER}.lock", "w") as lock, ThreadPoolExecutor(2) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one at a time on a machine
        shutil.rmtree(FOLDER, ignore_errors=True)
        write_sources(FOLDER / "sources")
        make_models(FOLDER / "models")
        kept = each(pool, "made ", make_streams, sorted({run.streams for run in (combinations | whole).values()}))
        kept |= each(pool, "", lambda name: run_combination(name, combinations[name]), list(combinations))
        for name in whole.keys() - combinations.keys():
            run_combination(name, whole[name])
        kept |= each(pool, "damaged ", damage, damages)
        shutil.rmtree(FOLDER)
    return kept


def each(pool: ThreadPoolExecutor, prefix: str, work: Callable[[str], Kept], names: list[str]) -> dict[str, Kept]:
    """The results of `work` by name, told on stderr as they come."""
    found = {}
    for name, kept in zip(names, pool.map(work, names), strict=True):
        exits = " ".join(lines[0].removeprefix("exit ") for lines in kept["said"].values())
        print(f"{prefix}{name}: {exits}", file=sys.stderr, flush=True)
        found[f"{prefix}{name}"] = kept
    return found


# ---------------------------------------------------------------------------------------------- comparing


def flat(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """(path, value) of all that nested JSON objects hold, lists as they are."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{path}: {key}" if path else key)
    else:
        yield path, value


def differences(old: dict[str, Kept], new: dict[str, Kept]) -> Iterator[str]:
    """A line for each value, and for each line of a command, that is not in both."""
    before, after = (dict(flat(kept)) for kept in (old, new))
    for path in [*before, *(path for path in after if path not in before)]:
        was, now = before.get(path, "nothing"), after.get(path, "nothing")
        if ": said: " in path and isinstance(was, list) and isinstance(now, list):
            for number, (one, other) in enumerate(zip_longest(was, now, fillvalue="nothing")):
                if one != other:
                    yield f"{path}: line {number}: {one} -> {other}"
        elif was != now:
            yield f"{path}: {json.dumps(was)} -> {json.dumps(now)}"
    if list(before) != list(after) and before.keys() == after.keys():
        moved = next(one for one, other in zip(before, after, strict=True) if one != other)
        yield f"{moved}: the same values in another order"


@click.group()
def main() -> None:
    """Shows that a change of the code changes no byte that is stored and no line of `verify`."""
    os.chdir(ROOT)
    for name in [name for name in os.environ if name.startswith(("EXTRACT_", "LAUNCH_", "XLA_"))]:
        del os.environ[name]
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # no threads in what is forked
    os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    FORKS.set_forkserver_preload(["benchmarks.kept_libraries"])


only = click.option("--only", default="*", show_default=True, help="Combinations whose names match this pattern.")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@only
def keep(file: Path, only: str) -> None:
    """Write to FILE what is so now."""
    kept = keep_all(only)
    file.write_text(json.dumps(kept, indent=1) + "\n")
    if failed := [name for name, one in kept.items() if any(lines[0] == "exit 1" for lines in one["said"].values())]:
        raise click.ClickException(f"kept, but commands ended by a traceback: {', '.join(failed)}")


@main.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True))
@only
def compare(file: Path, only: str) -> None:
    """Say what is not as in FILE; exit 1 if anything is."""
    old, new = json.loads(file.read_text()), json.loads(json.dumps(keep_all(only)))
    found = list(differences({name: kept for name, kept in old.items() if fnmatch(name, only) or name in new}, new))
    print(*found, sep="\n", end="\n" * bool(found))
    objects = sum(len(kept["stored"]) for kept in new.values())
    lines = sum(len(said) for kept in new.values() for said in kept["said"].values())
    print(f"{objects} objects of {len(new)} combinations, {lines} lines: "
          + (f"{len(found)} differences" if found else "equal"))  # fmt: skip
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
