#!/bin/bash
# Trains on all nodes of a SLURM job: sbatch scripts/launch/slurm.sh --config=configs/base.py --workdir=/shared/runs/base
#
# One task per node uses all its GPUs. The processes find each other by SLURM's variables. SLURM sends SIGTERM before
# the time limit, and when the job is preempted. The run then saves and ends. The job is requeued, and the same command
# resumes the run.
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

# --stop_after is for queues whose SIGTERM comes too late for a step and a save. A stopped run and a finished run both
# end with status 0. The output tells them apart.
output="audiovae-${SLURM_JOB_ID}.last"
srun --label --kill-on-bad-exit=0 .venv/bin/python scripts/train.py --stop_after=11h45m "$@" | tee "$output"

if grep -q "stopped at step" "$output"; then
  scontrol requeue "$SLURM_JOB_ID"
fi
