#!/usr/bin/env bash
# Run one worker, configured by environment variables, and restart it while a restart can help.
#
#   WORKER_ID=3 MODEL=Qwen/Qwen2.5-0.5B STREAMS=gs://bucket/streams OUTPUT=gs://bucket/run LAYERS=12 ./launch_worker.sh
#   ./launch_worker.sh 3 --seq-len 1024          the first argument is the worker id, the others go to the worker
#
# MODEL, STREAMS, OUTPUT   required
# WORKER_ID                or $1, or the scheduler's variable (TPU_WORKER_ID, JOB_COMPLETION_INDEX, ...)
# LAYERS, HOOKS, STREAM    optional; every other flag is EXTRACT_<FLAG>, such as EXTRACT_SEQ_LEN=1024
# STREAM=any               no worker id: extract free streams, one after the other, until all are finished
# TPU_HOST_CHIPS           1, 4 or 8: use this host's chips alone, though it is part of a slice of several hosts
# PYTHON                   interpreter; by default .venv/bin/python in this script's folder, else python3
#                          or python3.13 to python3.11, whichever is 3.11 or later
#
# The exit code of the worker decides about a restart, after a growing, jittered pause; a new commit resets all counts
# and pauses:
#   75 (try again), 137, 143 (killed)   a preemption: restart, without a limit
#   death by another signal             a failure: stop after LAUNCH_FAILURES (5) in a row without a new commit
#   77 (no permission)                 after a commit of this launcher a failure, as permissions are seldom taken back;
#                                      before one: stop
#   a kill within LAUNCH_QUICK (300) seconds, without a new commit: stop after LAUNCH_KILLS (10) in a row
#   any other code                      stop
# The exit code is the worker's last one. SIGTERM, SIGINT and SIGHUP are passed on as SIGTERM and end the restarts:
# 75. A worker whose launcher was killed gets SIGTERM from the kernel.
set -euo pipefail
trap 'exit 75' TERM INT HUP # until a worker is there to be told

here=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && pwd)
first_pause=${LAUNCH_FIRST_PAUSE:-1}
longest_pause=${LAUNCH_LONGEST_PAUSE:-60}
most_failures=${LAUNCH_FAILURES:-5}
most_kills=${LAUNCH_KILLS:-10}
quick=${LAUNCH_QUICK:-300}

say() { # severity, message; in the worker's format
    local text="launch_worker: $2"
    if [ "${EXTRACT_LOG_FORMAT:-}" = json ]; then
        text=${text//\\/\\\\} text=${text//\"/\\\"}
        text="{\"severity\": \"$1\", \"message\": \"$text\", \"time\": \"$(date -u +%Y-%m-%dT%H:%M:%SZ)\"}"
    fi
    echo "$text" >&2 || true # a lost log ends no worker
}

stop_with() { # exit code, message
    say ERROR "$2"
    exit "$1"
}

find_worker_id() {
    local name
    for name in WORKER_ID EXTRACT_WORKER_ID TPU_WORKER_ID JOB_COMPLETION_INDEX SLURM_ARRAY_TASK_ID SKYPILOT_JOB_RANK; do
        if [ -n "${!name:-}" ]; then echo "${!name}"; return; fi
    done
}

if [ $# -gt 0 ] && [[ $1 != -* ]]; then
    worker_id=$1
    shift
else
    worker_id=$(find_worker_id)
fi
STREAM=${STREAM:-${EXTRACT_STREAM:-}}
[ -n "$worker_id" ] || [ -n "$STREAM" ] ||
    stop_with 2 "no worker id; give a number: ./launch_worker.sh 0, or set WORKER_ID"
[ -z "$worker_id" ] || [[ $worker_id =~ ^[0-9]+$ ]] || stop_with 2 "worker id '$worker_id' is not a number"
for name in MODEL STREAMS OUTPUT; do
    [ -n "${!name:-}" ] || stop_with 2 "$name is not set; see the top of $here/launch_worker.sh"
done

python=${PYTHON:-}
if [ -z "$python" ]; then
    python=$here/.venv/bin/python
    if [ ! -x "$python" ]; then
        source "$here/deploy/find_python.sh"
        python=$(find_python) || stop_with 2 "$no_python (in $here)"
    fi
fi
command -v "$python" > /dev/null || stop_with 2 "no interpreter '$python'; make one: uv venv --seed --python 3.12 $here/.venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop_with 2 "$python is older than Python 3.11; make one: uv venv --seed --python 3.12 $here/.venv"
missing=$("$python" -c '
import importlib.util
names = ["jax", "flax", "transformers", "pyarrow", "click", "click_default_group", "google.cloud.storage"]
def found(name):
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
print(*[name for name in names if not found(name)])')
[ -z "$missing" ] || stop_with 2 "$python lacks $missing; install: $python -m pip install '${here}[worker]'"

# shellcheck disable=SC2153  # STREAMS comes from the environment
arguments=(--model "$MODEL" --streams "$STREAMS" --output "$OUTPUT")
[ -z "$worker_id" ] || arguments+=(--worker-id "$worker_id")
[ -z "${LAYERS:-}" ] || arguments+=(--layers "$LAYERS")
[ -z "${HOOKS:-}" ] || arguments+=(--hooks "$HOOKS")
[ -z "$STREAM" ] || arguments+=(--stream "$STREAM")

case ${TPU_HOST_CHIPS:-} in # libtpu's variables for a process that uses its host's chips alone
    '') ;;
    1) export TPU_CHIPS_PER_PROCESS_BOUNDS=1,1,1 TPU_VISIBLE_DEVICES=0 ;;
    4) export TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1 TPU_VISIBLE_DEVICES=0,1,2,3 ;;
    8) export TPU_CHIPS_PER_PROCESS_BOUNDS=2,4,1 TPU_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 ;;
    *) stop_with 2 "TPU_HOST_CHIPS=$TPU_HOST_CHIPS: a host has 1, 4 or 8 chips" ;;
esac
[ -z "${TPU_HOST_CHIPS:-}" ] || export TPU_PROCESS_BOUNDS=1,1,1

export LAUNCH_PID=$$
child=
stopping=0
pass_on() { # always SIGTERM: a background process ignores SIGINT until it installs a handler
    stopping=$((stopping + 1))
    [ -z "$child" ] || kill -s TERM "$child" 2> /dev/null || true
}
trap pass_on TERM INT HUP
trap '' PIPE # of a closed log

run_child() { # command; its exit code
    local code signals=-1
    "$@" &
    child=$!
    [ "$stopping" -eq 0 ] || pass_on # for a signal that arrived before the child started
    while [ "$signals" -ne "$stopping" ]; do # a signal ends `wait`, not the child
        signals=$stopping code=0
        wait "$child" 2> /dev/null || code=$? # hides bash's own message about the kill
    done
    child=
    return "$code"
}

pause_before_next() {
    local seconds
    seconds=$(awk -v pause="$pause" -v seed="$RANDOM" 'BEGIN { srand(seed); print pause * (0.5 + rand() / 2) }')
    say WARNING "worker ended with $1; again in $seconds s"
    run_child sleep "$seconds" || true
    pause=$(awk -v pause="$pause" -v most="$longest_pause" 'BEGIN { print (pause * 2 < most) ? pause * 2 : most }')
}

give_up() { # exit code, what happened
    say ERROR "$2 without a new commit; not restarted"
    stop_with "$1" "see the worker's last lines above and dmesg (out of memory? then a lower --batch-size, \
--steps-per-batch or --queue-mib); committed batches stay, and the same command continues after them"
}

# The worker writes the name of a new commit into one file, which shows progress. Into the other each attempt writes its
# id, so that the next one can tell its killed predecessor from a rival.
notes=$(mktemp -d) || stop_with 2 "cannot make a temporary folder; set TMPDIR"
export LAUNCH_COMMIT_FILE=$notes/commit LAUNCH_ATTEMPTS_FILE=$notes/attempts
trap 'rm -rf "$notes"' EXIT

pause=$first_pause failures=0 kills=0 committed=0
while true; do
    [ "$stopping" -eq 0 ] || exit 75
    mkdir -p "$notes" # a cleaner of temporary files may have removed it
    : > "$LAUNCH_COMMIT_FILE"
    began=$SECONDS code=0
    run_child "$python" "$here/extract_activations.py" run "${arguments[@]}" "$@" || code=$?
    if [ -s "$LAUNCH_COMMIT_FILE" ]; then pause=$first_pause failures=0 kills=0 committed=1; fi
    case $code in
        75 | 129 | 13[0-9] | 1[4-9][0-9] | 2[0-9][0-9]) ;; # try again, or death by a signal
        77) [ "$committed" -eq 1 ] || exit 77 ;;
        *) exit "$code" ;;
    esac
    [ "$stopping" -eq 0 ] || exit 75
    case $code in
        75) ;;
        137 | 143)
            kills=$((SECONDS - began < quick ? kills + 1 : 0))
            [ "$kills" -lt "$most_kills" ] || give_up "$code" "killed $kills times in a row, soon after the start and"
            ;;
        *)
            failures=$((failures + 1))
            what="$failures crashes in a row, the last by signal $((code - 128)),"
            [ "$code" -ne 77 ] || what="no permission $failures times in a row"
            [ "$failures" -lt "$most_failures" ] || give_up "$code" "$what"
            ;;
    esac
    pause_before_next "$code"
done
