#!/usr/bin/env bash
# Set-up, then the main job end to end on the embedded demo set. METHOD=odis (default), ibot, dino, gtsa or alfm; more options are passed on:
#   bash tools/quickstart.sh --epochs 32
set -euo pipefail
cd "$(dirname "$0")/.."
PY=$(bash tools/install_env.sh)
exec "$PY" -m odis_mm.workflows.quickstart --method "${METHOD:-odis}" "$@"
