#!/usr/bin/env bash
# Training under SLURM: one torchrun per node.
#   [GPUS_PER_NODE=8] [NNODES=1] [CPUS_PER_TASK=64] [PORT=29500] [SRUN_ARGS="--time=1-0"] \
#   bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG [options of tools/train.py]" >&2; exit 2; }
PARTITION=$1 JOB_NAME=$2; shift 2
export NNODES=${NNODES:-1} GPUS_PER_NODE=${GPUS_PER_NODE:-8} PORT=${PORT:-29500}
TOOLS=$(cd "$(dirname "$0")" && pwd)
# NODE_RANK and MASTER_ADDR are known on the nodes only
# shellcheck disable=SC2016,SC2086
exec srun --partition="$PARTITION" --job-name="$JOB_NAME" --nodes="$NNODES" --ntasks-per-node=1 \
  --cpus-per-task="${CPUS_PER_TASK:-64}" --gpus-per-node="$GPUS_PER_NODE" --kill-on-bad-exit=1 ${SRUN_ARGS:-} bash -c '
    export NODE_RANK=$SLURM_NODEID MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
    tools=$1; shift
    config=$1; shift
    exec bash "$tools/dist_train.sh" "$config" "$GPUS_PER_NODE" "$@"' train "$TOOLS" "$@"
