#!/usr/bin/env bash
# Trains on several GPU nodes under SLURM, with one process for each GPU, as JAX expects.
#
#   sbatch --nodes 4 [SBATCH OPTION ...] slurm_gpu.sh [--dry-run] RECIPE --workdir RUN [OPTION ...]
#
# Submit it in the repository's folder, which must be on a file system that all nodes share, with the `cuda` extra
# installed in its .venv. Options of sbatch replace the lines below. Two minutes before the time limit, or when
# preempted, the training saves a checkpoint; the job is queued again and continues from there. Without sbatch,
# --dry-run prints the command of the job.
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
# srun does not inherit sbatch's --cpus-per-task. --resume starts a new run if there is no checkpoint.
train=(srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" --kill-on-bad-exit=1 .venv/bin/stgt pretrain "$@" --resume)
if [[ $dry_run ]]; then
  line=$(printf '%q ' "${train[@]}")
  echo "${line% }"
  exit
fi
[[ ${SLURM_JOB_ID:-} ]] || fail "start it with sbatch, or use --dry-run"
gpus=${SLURM_GPUS_PER_NODE:-0} # a number, or TYPE:NUMBER
[[ ${gpus##*:} == "${SLURM_NTASKS_PER_NODE:-}" ]] ||
  fail "--ntasks-per-node=${SLURM_NTASKS_PER_NODE:-unset} must equal --gpus-per-node=$gpus: one process a GPU"

# Only this script gets the signal (B:), so that it knows whether the run was interrupted. It forwards the signal with
# scancel, because srun would kill its processes on SIGTERM.
interrupted=
trap 'interrupted=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
"${train[@]}" &
status=0
wait $! || status=$?
if [[ $interrupted ]]; then
  wait $! || true # the signal ended the first wait; this one ends when the checkpoint is written
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
