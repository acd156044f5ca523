#!/usr/bin/env bash
# Set-up, then the main job end to end on the embedded demo set: pretrain, fine-tune a detector from it and from random weights, report.
# METHOD=odis (default), ibot, dino, gtsa or alfm; more options are passed on to `odis-mm compare`:
#   bash tools/quickstart.sh --set pretraining.iterations=1200
set -euo pipefail
cd "$(dirname "$0")/.."
PY=$(bash tools/install_env.sh)
METHOD=${METHOD:-odis}
exec "$PY" -m odis_mm compare quickstart --starts "$METHOD" --work-dir "work_dirs/quickstart/$METHOD" "$@"
