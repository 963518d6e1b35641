#!/usr/bin/env bash
# Startup script of a TPU VM (queued resources, spot): installs the project and runs a worker under systemd, at the first
# boot and at each later one. It deletes nothing, and is safe to run again. A preempted spot TPU VM does not boot again:
# deploy/keep_fleet.sh requests another one in its place.
#
# The configuration is instance metadata (--metadata), with these keys. If a value has a comma, as layers=6,12 has, choose
# another separator: --metadata '^;^layers=6,12;output=gs://BUCKET/run'.
#   repository             git URL of the project; required
#   revision               commit or tag of the project, so that all machines run the same code; without it, what the
#                          repository has when a machine first boots
#   model, streams, output required, as MODEL, STREAMS and OUTPUT of launch_worker.sh
#   worker-id              the number of this worker; without it the machine extracts free streams (STREAM=any)
#   layers, hooks          optional, as LAYERS and HOOKS
#   settings               optional: NAME=value for each further variable, separated by spaces (EXTRACT_SEQ_LEN=1024)
set -euo pipefail

# Tests override these; the defaults are those of a TPU VM.
metadata=http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/attributes
home=${EXTRACTION_HOME:-/opt/extraction}
units=${SYSTEMD_UNITS:-/etc/systemd/system}

attribute() { # key; its value, nothing if there is no such key
    local answer
    answer=$(curl --silent --retry 5 --retry-connrefused --header 'Metadata-Flavor: Google' \
        --write-out '\n%{http_code}' "$metadata/$1")
    case $answer in
        *$'\n200') printf '%s' "${answer%$'\n'*}" ;;
        *$'\n404') ;;
        *) echo "tpu_vm_startup: the metadata server does not tell $1" >&2 && return 75 ;;
    esac
}

repository=$(attribute repository)
revision=$(attribute revision)
[ -n "$repository" ] || { echo "tpu_vm_startup: the metadata key repository is not set" >&2 && exit 2; }
mkdir -p "$home" "$units"
umask 077
{
    for key in model streams output layers hooks; do
        value=$(attribute "$key")
        [ -z "$value" ] || echo "${key^^}=\"$value\""
    done
    worker_id=$(attribute worker-id)
    if [ -n "$worker_id" ]; then echo "WORKER_ID=$worker_id"; else echo "STREAM=any"; fi
    attribute settings | tr ' ' '\n'
    echo
    echo "EXTRACT_LOG_FORMAT=json"
} > "$home/worker.env"
umask 022

if ! command -v uv > /dev/null; then
    curl --location --silent --show-error --fail https://astral.sh/uv/install.sh | UV_INSTALL_DIR=/usr/local/bin sh
fi
[ -d "$home/project" ] || git clone --quiet "$repository" "$home/project"
cd "$home/project"
if [ -n "$revision" ]; then
    git fetch --quiet --tags origin
    git checkout --quiet --detach "$revision"
fi
uv venv --quiet --allow-existing --python 3.12 .venv
uv pip install --quiet --python .venv --requirement deploy/locks/tpu.txt
uv pip install --quiet --python .venv --no-deps --editable .

# launch_worker.sh restarts its worker, also one that was killed for its memory, and bounds that; each of its exit codes
# is final. systemd starts it again only if the launcher itself was killed.
cat > "$units/extraction-worker.service" << UNIT
[Unit]
Description=Activation extraction worker
After=network-online.target
Wants=network-online.target

[Service]
EnvironmentFile=$home/worker.env
Environment=HOME=/root
WorkingDirectory=$home/project
ExecStart=$home/project/launch_worker.sh
Restart=on-abnormal
RestartSec=10
OOMPolicy=continue
TimeoutStopSec=15

[Install]
WantedBy=multi-user.target
UNIT
systemctl daemon-reload
systemctl enable --quiet extraction-worker.service
systemctl restart extraction-worker.service
