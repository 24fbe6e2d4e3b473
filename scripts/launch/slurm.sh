#!/bin/bash
# Trains on all nodes of a SLURM job: sbatch scripts/launch/slurm.sh --config=configs/base.py --workdir=/shared/runs/base
#
# One task a node takes all its GPUs. The processes find each other by SLURM's variables. Before the time
# is up, and when the job is preempted, SLURM sends SIGTERM: the run saves and ends, the job is queued
# again, and the same command goes on from there.
#SBATCH --job-name=audiovae
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=audiovae-%j.log

set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"

# The limit of --stop_after is for queues whose SIGTERM comes too late for a step and a save. A run that was
# stopped ends with status 0 just as one that is done, so what it said last tells them apart.
last_words="audiovae-${SLURM_JOB_ID}.last"
srun --label --kill-on-bad-exit=0 .venv/bin/python scripts/train.py --stop_after=11h45m "$@" | tee "$last_words"

if grep -q "stopped at step" "$last_words"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
