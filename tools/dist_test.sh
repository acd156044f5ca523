#!/usr/bin/env bash
# Evaluation on several GPUs or CPU processes; the environment is that of dist_train.sh:
#   bash tools/dist_test.sh CONFIG CHECKPOINT RANKS_PER_NODE [options of tools/test.py]
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 CONFIG CHECKPOINT RANKS_PER_NODE [options of tools/test.py]" >&2; exit 2; }
CONFIG=$1 CHECKPOINT=$2 RANKS=$3; shift 3
. "$(dirname "$0")/torchrun.sh"
launch "$RANKS" "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "$@"
