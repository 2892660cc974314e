#!/bin/bash
# Run shard I of N of an experiment, and again if the process is killed: what it had finished is kept.
#   launch/shard.sh I N --config=... --workdir=...
# PYTHON names the interpreter, ATTEMPTS how often to start (default 5).
set -uo pipefail
index=$1 count=$2
shift 2
cd "$(dirname "$0")/.."
for ((attempt = 1; ; attempt++)); do
  "${PYTHON:-python}" -m experiments.main "$@" --shard="$index/$count"
  status=$?
  # Above 128 a signal ended it: the unit at work is lost, and only that. Anything else is the experiment's own answer.
  if ((status <= 128 || attempt >= ${ATTEMPTS:-5})); then exit "$status"; fi
  echo "shard $index/$count: killed (status $status), starting again" >&2
done
