#!/usr/bin/env bash
# Trains one run on several machines. Call it on each of them, with the same arguments:
#
#   HEAD=machine-1 NODES=2 GPUS=4 docs/launch/nodes.sh photos/ --size 64 --device cuda --out /shared/run
#
# HEAD is one of the machines, by a name that all of them know; NODES how many there are; GPUS the
# processes of each. The images are at the same path everywhere, and --out is on a disk that all share.
#
# A process that dies is started again, with all others, up to RESTARTS times; training then goes on
# from the newest checkpoint. A run that is there already is gone on with. Told to stop (SIGTERM), it
# has SHUTDOWN seconds (110) to save; torchrun's own measure is 30.
set -euo pipefail

: "${HEAD:?say which machine is the head: HEAD=NAME}" "${NODES:?say how many machines: NODES=2}"
out=
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --out) next=$((i + 1)); out=${!next:-} ;;
    --out=*) out=${!i#--out=} ;;
  esac
done
[ -n "$out" ] || { echo "say where the run is to be: --out FOLDER" >&2; exit 2; }

command=(train "$@")
[ -f "$out/config.toml" ] && command=(resume "$out")
exec torchrun \
  --nnodes "$NODES" --nproc-per-node "${GPUS:-1}" --max-restarts "${RESTARTS:-3}" \
  --shutdown-timeout "${SHUTDOWN:-110}" \
  --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29400}" --rdzv-id "${NAME:-unraze}" \
  -m unraze "${command[@]}"
