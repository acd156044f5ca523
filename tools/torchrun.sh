# Sourced by dist_train.sh and dist_test.sh: launch RANKS_PER_NODE SCRIPT ARGS...
# Environment: PYTHON, NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1), PORT (29500; a free one if there is one
# node and PORT is not set), ODIS_MM_PEER_TIMEOUT (600: seconds to wait for the other nodes and ranks).
launch() {
  local ranks=$1; shift
  [[ $ranks =~ ^([1-9][0-9]*|auto|cpu|gpu)$ ]] || {
    echo "error: the number of ranks per node must be 1 or more, not '$ranks'; it stands before all options" >&2
    exit 2
  }
  local nodes=${NNODES:-1} place
  if [ "$nodes" = 1 ] && [ -z "${PORT:-}" ]; then
    place=(--standalone)  # any free port: two runs on one machine do not collide
  else
    place=(--nnodes="$nodes" --node_rank="${NODE_RANK:-0}" \
           --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
           --rdzv_conf "timeout=${ODIS_MM_PEER_TIMEOUT:-600}")
  fi
  exec "${PYTHON:-python}" "$(dirname "$0")/torchrun.py" "${place[@]}" --nproc_per_node="$ranks" "$@"
}
