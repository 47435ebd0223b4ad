#!/usr/bin/env bash
# One task of launchers/train.sbatch on its node: caches on the node's own disk, then the command takes this
# process over.
set -euo pipefail

# Compiled ops on a shared disk are slow to load, and differ between kinds of nodes. Nobody else may write what
# we load.
caches=${SLURM_TMPDIR:-/tmp}/mtdnn_ds_$(id -u)
# It may be there from an earlier job, or another process of this one.
mkdir -m 700 "$caches" 2>/dev/null || true
if [[ -L $caches || ! -O $caches || $(stat -c %a "$caches") != 700 ]]; then
  echo "error: $caches on $(hostname) is not a folder of yours that only you can write to; remove it, or set SLURM_TMPDIR to a folder of your own" >&2
  exit 2
fi

export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$caches/torch_extensions}
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$caches/triton}

# A build that was killed leaves a lock that every later one would wait for; none takes a quarter of an hour.
[[ ! -d $TORCH_EXTENSIONS_DIR ]] || find "$TORCH_EXTENSIONS_DIR" -name lock -mmin +15 -delete

if [[ ${MTDNN_LAUNCHER:-srun} = deepspeed ]]; then
  # A signal reaches every process of a task. The launchers in between would die of it and leave their ranks
  # behind: they ignore it, and hand that on to the ranks, which listen all the same.
  trap '' USR1
fi
exec "${@/#@NODE@/$SLURM_NODEID}" # the number of the node is known here only
