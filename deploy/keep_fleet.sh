#!/usr/bin/env bash
# Keep N TPU VMs requested: delete requests that will give no machine any more, and make those that are missing.
#
#   ZONE=us-central1-a deploy/keep_fleet.sh 64 --accelerator-type v5litepod-8 --runtime-version v2-alpha-tpuv5-lite \
#       --spot --scopes cloud-platform --metadata-from-file startup-script=deploy/tpu_vm_startup.sh \
#       --metadata '^;^repository=URL;revision=COMMIT;model=Qwen/Qwen2.5-0.5B;streams=gs://B/streams;output=gs://B/run;layers=6,12'
#   ZONE=us-central1-a deploy/keep_fleet.sh 0       delete all of them, running machines too
#
# A spot TPU VM cannot be restarted after its preemption, and a suspended queued resource is not allocated again: without
# this script a fleet shrinks to nothing. Start it every few minutes, from cron for instance. Each machine is a queued
# resource of its own, FLEET-0 to FLEET-(N-1), so that a preemption takes one machine and a second start makes none twice.
#
# N          how many machines; requests of numbers from N on are deleted
# ...        further arguments are those of `gcloud compute tpus queued-resources create`
# ZONE       required
# FLEET      begins the names of the machines, by default extraction
#
# Exit codes: 0 all N are requested, 2 usage, 75 gcloud refused or failed: start it again.
set -euo pipefail

fleet=${FLEET:-extraction}
at_once=16 # processes of gcloud

stop_with() { # exit code, message
    echo "keep_fleet: $2" >&2
    exit "$1"
}

size=${1:-}
[[ $size =~ ^[0-9]+$ ]] || stop_with 2 "the first argument is how many machines there shall be"
shift
[ -n "${ZONE:-}" ] || stop_with 2 "ZONE is not set, such as us-central1-a"
[[ $fleet =~ ^[a-z][a-z0-9-]*$ ]] || stop_with 2 "FLEET=$fleet: lower case letters, digits and hyphens"
if command -v flock > /dev/null; then # the run before has not ended
    exec 9> "${TMPDIR:-/tmp}/keep_fleet-$(id -u)-$fleet-$ZONE.lock"
    flock --nonblock 9 || stop_with 75 "another keep_fleet.sh is at work on $fleet in $ZONE"
fi

gcloud_queued() { gcloud compute tpus queued-resources "$@" --zone "$ZONE"; }

read_fleet() { # set `requests` to the number and the state of each request of this fleet
    local all
    all=$(gcloud_queued list --format 'value(name.basename(),state.state)') ||
        stop_with 75 "gcloud did not list the requests; nothing was changed"
    requests=$(awk -v name="$fleet" '$1 ~ "^" name "-(0|[1-9][0-9]*)$" { print substr($1, length(name) + 2), $2 }' \
        <<< "$all")
}

numbers_where() { # condition of awk on the number $1 and the state $2
    awk -v size="$size" "\$1 != \"\" && ($1) { print \$1 }" <<< "$requests" | sort -n
}

for_each() { # what is done, the numbers, a command of queued-resources, its arguments with {} for a name
    local what=$1 numbers=$2
    shift 2
    [ -n "$numbers" ] || return 0
    echo "keep_fleet: $what: $(xargs <<< "$numbers")"
    # shellcheck disable=SC2086  # one word for each number
    printf "$fleet-%s\n" $numbers |
        xargs -P "$at_once" -I{} gcloud compute tpus queued-resources "$@" --zone "$ZONE" --quiet || failed=1
}

failed=0
read_fleet
# Without --force a request is only deleted if it has no machine, whatever has happened since it was listed.
# shellcheck disable=SC2016  # $1 and $2 are those of awk
dead=$(numbers_where '$1 < size && ($2 == "SUSPENDED" || $2 == "FAILED")')
# shellcheck disable=SC2016
beyond=$(numbers_where '$1 >= size && $2 != "DELETING"')
for_each "deleting, suspended or failed" "$dead" delete {}
for_each "deleting, beyond $size" "$beyond" delete {} --force
read_fleet
missing=$(comm -23 <(seq 0 $((size - 1)) | sort) <(numbers_where '1' | sort) | sort -n)
for_each "requesting" "$missing" create {} --node-id {} --async "$@"
[ "$failed" -eq 0 ] || stop_with 75 "gcloud refused some of it, see above; start this again"
