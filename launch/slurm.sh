#!/bin/bash
# Share an experiment among the tasks of a Slurm job; every task runs its own units on its own GPU.
#   sbatch --nodes=4 launch/slurm.sh --config=configs/binary_tasks.py:cifar10 --workdir=/shared/run
# The workdir is on a file system that all nodes share. The same command goes on where a job was stopped.
#SBATCH --job-name=nn_adv
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

# Tasks know nothing of each other: one that fails stops none (--kill-on-bad-exit=0).
# shellcheck disable=SC2016  # a task's own variables
srun --kill-on-bad-exit=0 bash -c '"$(dirname "$0")"/shard.sh "$SLURM_PROCID" "$SLURM_NTASKS" "$@"' \
  "${SLURM_SUBMIT_DIR:-$PWD}/launch/slurm.sh" "$@"
