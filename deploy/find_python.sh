# shellcheck shell=bash
# Find the interpreter of a new machine. launch_worker.sh and example_parallel_workflow.sh source this file.

find_python() { # print the first of these names that is Python 3.11 or later; fail if none is
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' > /dev/null 2>&1; then
            echo "$name"
            return
        fi
    done
    return 1
}

# shellcheck disable=SC2034  # for those who source this file
no_python="no python3, python3.13, python3.12 or python3.11 on PATH is Python 3.11 or later; install one, or uv \
(https://docs.astral.sh/uv) and run: uv venv --seed --python 3.12 .venv"
