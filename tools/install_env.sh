#!/usr/bin/env bash
# Makes the environment that odis_mm is tested in; idempotent: a second call verifies and returns in seconds.
#
#   bash tools/install_env.sh            -> .venv in the checkout
#   ODIS_MM_VENV=/path/to/venv bash ...  -> that environment instead (made if it is not there)
#
# PYTHON           interpreter that makes the environment (default: the first of python3.11/3.12/3.10/python3 that is >= 3.10)
# ODIS_MM_FAMILY   onedl (default, the maintained forks) or openmmlab (upstream 2023-24 releases). Never both.
# FORCE_CUDA=1     compile mmcv's operators for GPUs on a machine without one
# MAX_JOBS         parallel compilers of the mmcv build (default: number of cores)
# The last line printed is the path of the environment's python.
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD
VENV=${ODIS_MM_VENV:-$ROOT/.venv}
FAMILY=${ODIS_MM_FAMILY:-onedl}
TORCH=2.10.0 TORCHVISION=0.25.0          # torch >= 2.14 needs C++20, which mmcv's sources do not compile under
START=$SECONDS
LOG=$VENV/odis_mm_install.log

say() { printf '[install %4ds] %s\n' $((SECONDS - START)) "$*" >&2; }
die() { printf '[install] ERROR: %s\n' "$*" >&2; exit 1; }

case $FAMILY in
  onedl)     MMENGINE=onedl-mmengine==0.10.12 MMCV=onedl-mmcv==2.3.6 MMPRETRAIN=onedl-mmpretrain==1.3.6 MMDET=onedl-mmdetection==3.5.1
             OTHER='mmengine mmcv mmcv-full mmcv-lite mmpretrain mmdet' ;;
  openmmlab) MMENGINE=mmengine==0.10.7 MMCV=mmcv==2.1.0 MMPRETRAIN=mmpretrain==1.2.0 MMDET=mmdet==3.3.0
             OTHER='onedl-mmengine onedl-mmcv onedl-mmpretrain onedl-mmdetection mmcv-full mmcv-lite' ;;
  *) die "ODIS_MM_FAMILY is '$FAMILY'; use onedl or openmmlab." ;;
esac

if [ ! -x "$VENV/bin/python" ]; then
  if [ -z "${PYTHON:-}" ]; then
    for p in python3.11 python3.12 python3.10 python3; do
      if "$p" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; then PYTHON=$p; break; fi
    done
  fi
  [ -n "${PYTHON:-}" ] || die "no Python 3.10, 3.11 or 3.12 on the PATH; install one or name it: PYTHON=/path/to/python3.11 bash tools/install_env.sh"
  say "making the environment $VENV with $("$PYTHON" --version)"
  "$PYTHON" -m venv "$VENV" || die "could not make $VENV (is it writable, is python3-venv installed?)"
fi
PY=$VENV/bin/python

# One probe of what is there: a line "NAME VERSION" per distribution, without importing any.
installed() { "$PY" - "$@" <<'P'
import sys
from importlib import metadata
for spec in sys.argv[1:]:
    name, _, want = spec.partition('==')
    try:
        have = metadata.version(name)
    except metadata.PackageNotFoundError:
        sys.exit(1)
    if want and have.split('+')[0] != want:
        sys.exit(1)
P
}

# Whether mmcv's operators are compiled for GPUs: yes, no (no GPU is wanted), or why they cannot be. torch takes no nvcc of
# another major version than its own CUDA's.
gpu_build() {
  if [ "${FORCE_CUDA:-0}" != 1 ] && ! nvidia-smi -L >/dev/null 2>&1; then echo no; return; fi
  "$PY" - 2>>"$LOG" <<'P' || echo no  # a torch that does not load is told below
import os, re, subprocess
import torch
from torch.utils.cpp_extension import CUDA_HOME
cuda = torch.version.cuda
if cuda is None or not (torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1'):
    print('no')
else:
    try:
        said = subprocess.run([f'{CUDA_HOME}/bin/nvcc', '--version'], capture_output=True, text=True, check=True).stdout
        have = re.search(r'release (\d+)\.(\d+)', said).groups()
    except (OSError, subprocess.CalledProcessError, AttributeError):
        have = None
    if have is None:
        print(f'there is no nvcc, CUDA\'s compiler, of CUDA {cuda}')
    elif have[0] != cuda.split('.')[0]:
        print(f'nvcc is of CUDA {".".join(have)}, and torch of CUDA {cuda}')
    else:
        print('yes')
P
}

ask_for_nvcc() {
  local remedy="Install the CUDA toolkit of torch's version, with nvcc on the PATH"
  case $GPU in
    yes|no) ;;
    *) [ "${FORCE_CUDA:-0}" != 1 ] || die "mmcv's operators cannot be compiled for GPUs: $GPU. $remedy."
       say "WARNING: mmcv's operators are compiled for CPUs alone: $GPU. Pretraining runs on the GPU, detectors on the CPU. $remedy, and call this script again to have detectors on the GPU." ;;
  esac
}

# mmcv can report a successful installation though mmcv._ext is missing, or was compiled for another torch: run an op.
ops_work() { "$PY" - "$GPU" >>"$LOG" 2>&1 <<'P'
import sys
import torch
from mmcv.ops import get_compiling_cuda_version, nms
on_gpu = sys.argv[1] == 'yes'
assert not on_gpu or get_compiling_cuda_version() != 'not available', 'compiled for CPUs alone'
for device in ['cpu'] + ['cuda'] * (on_gpu and torch.cuda.is_available()):
    boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 4, 4.1], [9, 9, 12, 12]], device=device)
    _, keep = nms(boxes, torch.tensor([.9, .8, .7], device=device), 0.5)
    assert keep.tolist() == [0, 2], (device, keep)
P
}

pip_install() { "$PY" -m pip install --disable-pip-version-check "$@" >>"$LOG" 2>&1 || { tail -n 25 "$LOG" >&2; die "pip install $* failed (above: the end of $LOG)"; }; }

build_ops() { # $*: more pip options. pip is silent while ninja compiles for minutes: show ninja's own [done/total].
  local progress="$VENV/odis_mm_ops.log" pid cpu=; : >"$progress"
  [ "$GPU" = yes ] || cpu='CUDA_VISIBLE_DEVICES= FORCE_CUDA=0'  # mmcv's build asks torch whether there is a GPU
  # -g0: Python's own flags ask for debug symbols, which make each file several times slower to compile and the objects far larger
  CFLAGS="${CFLAGS:-} -g0" CXXFLAGS="${CXXFLAGS:-} -g0" MMCV_WITH_OPS=1 env $cpu "$PY" -m pip install --disable-pip-version-check --no-build-isolation -v "$@" "$MMCV" >"$progress" 2>&1 &
  pid=$!
  while kill -0 $pid 2>/dev/null; do
    sleep 15
    say "  mmcv ops: $(grep -oE '^ *\[[0-9]+/[0-9]+\]' "$progress" | tail -n 1 | tr -d ' ' || true) $(tail -n 1 "$progress" | cut -c1-70)"
  done
  wait $pid || { tail -n 30 "$progress" >&2; die "the build of $MMCV failed (above: the end of $progress); it needs g++ and ~3 GB of memory per compiler, try MAX_JOBS=1"; }
}

for dist in $OTHER; do
  if installed "$dist" 2>/dev/null; then
    die "$VENV holds '$dist', which shares its import name with the $FAMILY family. Run '$PY -m pip uninstall -y $dist', or keep it with ODIS_MM_FAMILY=$([ "$FAMILY" = onedl ] && echo openmmlab || echo onedl)."
  fi
done

EXTRAS='timm pycocotools opencv-python-headless matplotlib tensorboard scipy scikit-learn globox scikit-image pytest pytest-cov pytest-xdist'
LINT='ruff==0.17.6 mypy==2.4.1 import-linter==2.17'  # pinned: versions format and judge differently
STAMP=$VENV/odis_mm_install.stamp
KEY=$(cat "$0" setup.cfg pyproject.toml | cksum)-$FAMILY-$ROOT
GPU=no
if installed torch==$TORCH; then GPU=$(gpu_build); fi
if [ "$(cat "$STAMP" 2>/dev/null)" = "$KEY" ] && installed "$MMCV" "$MMENGINE" "$MMPRETRAIN" "$MMDET" && ops_work; then
  say "environment $VENV is complete, nothing to do"
  ask_for_nvcc
else
  if [ -e "$STAMP" ] && installed torch==$TORCH "$MMCV" "$MMENGINE" "$MMPRETRAIN" "$MMDET"; then
    say "$VENV is complete but for this checkout (a minute): it was made by another one, or versions have changed since. Log: $LOG"
  else
    say "setting up $VENV: torch (2-5 min, 7 GB), mmcv ops (10 min on 2 cores, seconds from pip's cache), the rest (1 min). Log: $LOG"
  fi
  if ! installed torch==$TORCH torchvision==$TORCHVISION; then
    # the wheels lie beside what they unpack to; a disk that fills up is told by pip only after minutes of downloads
    FREE=$(df -Pk "$VENV" | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$FREE" -ge 10 ] || die "the disk of $VENV has $FREE GB free; the installation needs 10 GB (8 GB stay). Free some, or name another place: ODIS_MM_VENV=/path/to/venv bash tools/install_env.sh"
    say "1/4 torch $TORCH, torchvision $TORCHVISION"
    pip_install torch==$TORCH torchvision==$TORCHVISION
  fi
  say "2/4 build tools"
  # venv's own setuptools (65) cannot read mmcv's licence field, >= 80 breaks its build, >= 82 has no pkg_resources
  pip_install 'setuptools>=77,<80' wheel ninja psutil
  pip_install "$MMENGINE"
  GPU=$(gpu_build)
  ask_for_nvcc
  if ! { installed "$MMCV" && ops_work; }; then
    say "3/4 $MMCV with its compiled ops"
    build_ops
    if ! ops_work; then
      tail -n 1 "$LOG" >&2
      say "  the cached build does not run on this torch, or not on the GPU: compiling afresh"
      build_ops --no-cache-dir --force-reinstall --no-deps
      ops_work || { tail -n 5 "$LOG" >&2; die "mmcv is installed but its ops do not run (last lines of $LOG above)"; }
    fi
  fi
  say "3/4 mmcv ops verified (nms ran)"
  say "4/4 mmpretrain, mmdet, timm, pycocotools, this package"
  pip_install --no-build-isolation "$MMCV" "$MMPRETRAIN" "$MMDET" $EXTRAS $LINT torch==$TORCH torchvision==$TORCHVISION 'setuptools>=77,<80'
  pip_install --no-build-isolation --no-deps -e .
  ops_work || { tail -n 5 "$LOG" >&2; die "mmcv's ops stopped working after the installation (last lines of $LOG above)"; }
  printf '%s' "$KEY" >"$STAMP"
  say "environment ready"
fi
echo "$PY"
