#!/bin/bash
# Share an experiment among the hosts of a TPU VM slice; run it from the machine where you use gcloud.
#   NAME=my-slice ZONE=us-central2-b HOSTS=4 launch/tpu_vm.sh --config=configs/binary_tasks.py:cifar10 --workdir=/shared/run
# Every host has this repository in REPOSITORY (default: nn_adv, in the home folder) and mounts the workdir.
# CHIPS: chips of one host, as libtpu counts them (default: 2,2,1).
set -euo pipefail
hosts=${HOSTS:?how many hosts the slice has}

# Hosts know nothing of each other: libtpu is told that a host's chips are all there are.
alone="TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=${CHIPS:-2,2,1} CLOUD_TPU_TASK_ID=0"
started=()
for ((host = 0; host < hosts; host++)); do
  gcloud compute tpus tpu-vm ssh "${NAME:?the name of the slice}" --zone="${ZONE:?its zone}" --worker="$host" \
    --command="cd ${REPOSITORY:-nn_adv} && $alone launch/shard.sh $host $hosts $(printf '%q ' "$@")" &
  started+=($!)
done
failed=0
for process in "${started[@]}"; do wait "$process" || failed=1; done
exit "$failed"
