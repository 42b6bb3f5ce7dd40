#!/usr/bin/env bash
# One machine with 8 GPUs. What follows goes to recap_learner.train:
#   examples/scale/node.sh --store episodes --vision pretrain/vision --out big/policy
# A process that dies ends all of them; they start again, three times at most, from the last save.
set -eu
cd "$(dirname "$0")/../.."
. .recap/env.sh
exec torchrun --standalone --nproc-per-node "${GPUS:-8}" --max-restarts 3 \
    -m recap_learner.train policy --strategy fsdp --precision bfloat16 --checkpointing "$@"
