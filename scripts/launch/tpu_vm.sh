#!/bin/bash
# Trains on all hosts of a TPU VM slice. Run it on your own machine. Each host has the clone in ~/audiovae_jax:
#   scripts/launch/tpu_vm.sh TPU_NAME ZONE --config=configs/base.py --workdir=gs://BUCKET/runs/base
#
# The hosts find each other by the TPU's metadata. Ctrl-C here does not reach them. Stop a run with
#   gcloud compute tpus tpu-vm ssh TPU_NAME --zone=ZONE --worker=all --command='pkill -TERM -f scripts/train.py'
set -euo pipefail

name="${1:?TPU_NAME}" zone="${2:?ZONE}"
shift 2

gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd audiovae_jax && .venv/bin/python scripts/train.py $(printf '%q ' "$@")"
