"""The launch files, dry: the commands of Slurm and of gcloud are played by scripts, and so is Python."""

from __future__ import annotations

import os
import pathlib
import subprocess

import pytest

_LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
_ASKED = ["--config=configs/binary_tasks.py:digits", "--workdir=/shared/a run"]
# Slurm starts the command once for each task; gcloud has a shell on the host run it, in the home folder.
_SRUN = 'shift; export SLURM_PROCID SLURM_NTASKS=3; for SLURM_PROCID in 0 1 2; do "$@" || exit 1; done'
_GCLOUD = 'for argument; do case $argument in --command=*) cd "$HOME" && bash -c "${argument#--command=}";; esac; done'
# The second shard is killed at its first start.
_PYTHON = """line=$(printf '%s|' "$@"); echo "$line$TPU_PROCESS_BOUNDS" >> "$LOG"  # at once: shards run side by side
case "$*" in *--shard=1/3) if [ ! -e "$LOG.killed" ]; then touch "$LOG.killed"; kill -9 $$; fi;; esac"""


@pytest.mark.parametrize(("file", "bounds"), [("slurm.sh", ""), ("tpu_vm.sh", "1,1,1")])
def test_every_shard_is_run_and_a_killed_one_again(tmp_path, file, bounds):
    for name, body in (("srun", _SRUN), ("gcloud", _GCLOUD), ("python", _PYTHON)):
        script = tmp_path / name
        script.write_text(f"#!/bin/bash\n{body}\n")
        script.chmod(0o755)
    log = tmp_path / "log"
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "LOG": str(log),
        "PYTHON": "python",
        "HOME": str(_LAUNCH.parents[1]),
    }
    environment |= {"NAME": "slice", "ZONE": "zone", "HOSTS": "3", "REPOSITORY": _LAUNCH.parent.name}
    subprocess.run([_LAUNCH / file, *_ASKED], check=True, env=environment, cwd=_LAUNCH.parent)
    started = sorted(log.read_text().splitlines())
    shards = [f"-m|experiments.main|{_ASKED[0]}|{_ASKED[1]}|--shard={i}/3|{bounds}" for i in (0, 1, 1, 2)]
    assert started == shards


def test_a_failure_of_the_experiment_is_not_tried_again(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho started >> "$LOG"\nexit 2\n')
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "LOG": str(tmp_path / "log")}
    done = subprocess.run([_LAUNCH / "shard.sh", "0", "2", *_ASKED], check=False, env=environment)
    assert done.returncode == 2
    assert (tmp_path / "log").read_text() == "started\n"
