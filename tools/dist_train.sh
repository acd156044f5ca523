#!/usr/bin/env bash
# Training on several GPUs, or on several CPU processes (gloo) where there is no GPU:
#   bash tools/dist_train.sh CONFIG RANKS_PER_NODE [options of tools/train.py]
# Several nodes: the same line on each, with NNODES, NODE_RANK (0 on the first), MASTER_ADDR (the first) and PORT in
# the environment.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 CONFIG RANKS_PER_NODE [options of tools/train.py]" >&2; exit 2; }
CONFIG=$1 RANKS=$2; shift 2
. "$(dirname "$0")/torchrun.sh"
launch "$RANKS" "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "$@"
