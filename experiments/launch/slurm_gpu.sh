#!/usr/bin/env bash
# Trains on several nodes of GPUs under SLURM, one process a GPU, as JAX expects it there.
#
#   sbatch --nodes 4 [SBATCH OPTION ...] slurm_gpu.sh [--dry-run] RECIPE --workdir RUN [OPTION ...]
#
# Submitted from the repository's folder, which all nodes see, with the `cuda` extra installed in its .venv; without
# sbatch, --dry-run prints what the job would run. Options of sbatch replace the lines below. Two minutes before the
# time limit, or when preempted, the training saves a checkpoint; the job is queued again and goes on from there.
#SBATCH --job-name=stgt
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=stgt-%j.log
set -euo pipefail

fail() {
  echo "slurm_gpu.sh: error: $1" >&2
  exit 2
}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
[[ $# -gt 0 && $1 != -* ]] || fail "name a recipe: sbatch slurm_gpu.sh [--dry-run] RECIPE --workdir RUN [OPTION ...]"
# srun does not take over sbatch's --cpus-per-task. --resume starts anew where there is no checkpoint yet.
train=(srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 .venv/bin/stgt pretrain "$@" --resume)
if [[ $dry_run ]]; then
  line=$(printf '%q ' "${train[@]}")
  echo "${line% }"
  exit
fi
[[ ${SLURM_JOB_ID:-} ]] || fail "start it with sbatch, or look at it with --dry-run"
gpus=${SLURM_GPUS_PER_NODE:-0} # a number, or TYPE:NUMBER
[[ ${gpus##*:} == "${SLURM_NTASKS_PER_NODE:-}" ]] ||
  fail "--ntasks-per-node=${SLURM_NTASKS_PER_NODE:-unset} must equal --gpus-per-node=$gpus: one process a GPU"

# The signal comes to this script alone (B:), so that it can tell a run that was cut off from one that finished. It is
# scancel that hands it on: srun itself would kill its processes on SIGTERM.
cut_off=
trap 'cut_off=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
"${train[@]}" &
status=0
wait $! || status=$?
if [[ $cut_off ]]; then
  wait $! || true # the first one ended with the signal, this one when the checkpoint is written
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
