#!/usr/bin/env bash
# One worker, from environment variables, restarted for as long as restarting can help.
#
#   WORKER_ID=3 MODEL=Qwen/Qwen2.5-0.5B STREAMS=gs://bucket/streams OUTPUT=gs://bucket/run LAYERS=12 ./launch_worker.sh
#   ./launch_worker.sh 3 --seq-len 1024          the first argument is the worker id, the rest goes to the worker
#
# MODEL, STREAMS, OUTPUT   required
# WORKER_ID                or $1, or what the scheduler sets (TPU_WORKER_ID, JOB_COMPLETION_INDEX, ...)
# LAYERS, HOOKS, STREAM    optional; every other flag is EXTRACT_<FLAG>, such as EXTRACT_SEQ_LEN=1024
# PYTHON                   interpreter; by default .venv/bin/python beside this script, else python3
#
# Exit 75 (try again) and death by a signal are followed by a new start after a growing, jittered pause. Any other exit
# code is final and is this script's own. SIGTERM and SIGINT are passed on; then there is no new start.
set -euo pipefail

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
first_pause=${LAUNCH_FIRST_PAUSE:-1}
longest_pause=${LAUNCH_LONGEST_PAUSE:-60}

stop_with() { # exit code, message
    echo "launch_worker: $2" >&2
    exit "$1"
}

find_worker_id() {
    local name
    for name in WORKER_ID TPU_WORKER_ID JOB_COMPLETION_INDEX SLURM_ARRAY_TASK_ID SKYPILOT_JOB_RANK; do
        if [ -n "${!name:-}" ]; then echo "${!name}"; return; fi
    done
}

if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    worker_id=$1
    shift
else
    worker_id=$(find_worker_id)
fi
[ -n "$worker_id" ] || [ -n "${STREAM:-}" ] || stop_with 2 "which worker? give its number: ./launch_worker.sh 0, or set WORKER_ID"
[ -z "$worker_id" ] || [[ $worker_id =~ ^[0-9]+$ ]] || stop_with 2 "worker id '$worker_id' is not a number"
for name in MODEL STREAMS OUTPUT; do
    [ -n "${!name:-}" ] || stop_with 2 "$name is not set; see the top of $here/launch_worker.sh"
done

python=${PYTHON:-}
if [ -z "$python" ]; then
    python=$here/.venv/bin/python
    [ -x "$python" ] || python=python3
fi
command -v "$python" > /dev/null || stop_with 2 "no interpreter '$python'; make one: uv venv --python 3.11 $here/.venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop_with 2 "$python is older than Python 3.11; make one: uv venv --python 3.11 $here/.venv"
missing=$("$python" -c '
import importlib.util
names = ["jax", "flax", "transformers", "pyarrow", "click", "click_default_group", "google.cloud.storage"]
def found(name):
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
print(*[name for name in names if not found(name)])')
[ -z "$missing" ] || stop_with 2 "$python lacks $missing; install: $python -m pip install '$here'"

# shellcheck disable=SC2153  # STREAMS comes from the environment
arguments=(--model "$MODEL" --streams "$STREAMS" --output "$OUTPUT")
[ -z "$worker_id" ] || arguments+=(--worker-id "$worker_id")
[ -z "${LAYERS:-}" ] || arguments+=(--layers "$LAYERS")
[ -z "${HOOKS:-}" ] || arguments+=(--hooks "$HOOKS")
[ -z "${STREAM:-}" ] || arguments+=(--stream "$STREAM")

worker=
stopping=
pass_on() { # signal
    stopping=yes
    [ -z "$worker" ] || kill -s "$1" "$worker" 2> /dev/null || true
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

wait_for() { # process; its exit code, also when a trapped signal interrupts the waiting
    local code=0
    wait "$1" || code=$?
    while kill -0 "$1" 2> /dev/null; do
        code=0
        wait "$1" || code=$?
    done
    return "$code"
}

pause=$first_pause
while true; do
    [ -z "$stopping" ] || exit 75
    began=$SECONDS
    code=0
    "$python" "$here/extract_activations.py" run "${arguments[@]}" "$@" &
    worker=$!
    wait_for "$worker" || code=$?
    worker=
    if [ "$code" -ne 75 ] && [ "$code" -le 128 ]; then exit "$code"; fi
    [ -z "$stopping" ] || exit 75
    if [ $((SECONDS - began)) -ge "$longest_pause" ]; then pause=$first_pause; fi
    seconds=$(awk -v pause="$pause" -v seed="$RANDOM" 'BEGIN { srand(seed); print pause * (0.5 + rand() / 2) }')
    echo "launch_worker: worker ended with $code; again in $seconds s" >&2
    sleep "$seconds" &
    wait_for $! || true
    pause=$(awk -v pause="$pause" -v most="$longest_pause" 'BEGIN { print (pause * 2 < most) ? pause * 2 : most }')
done
