#!/usr/bin/env bash
# Trains on Cloud TPU VMs: creates the slice, installs this commit on all workers, and starts `stgt pretrain` there.
#
#   TPU_NAME=... ZONE=... TPU_TYPE=... RUNTIME_VERSION=... tpu_pod.sh [--dry-run] RECIPE --workdir gs://BUCKET/RUN ...
#
# Started again, it uses the existing slice and continues from the newest checkpoint. Settings:
#   TPU_NAME         name of the queued resource
#   ZONE             such as us-west4-a, in the project of `gcloud config`
#   TPU_TYPE         such as v5litepod-256
#   RUNTIME_VERSION  VM image for that type: v2-alpha-tpuv5-lite, v2-alpha-tpuv5, v2-alpha-tpuv6e
#   NUM_SLICES       number of slices, connected by the data-centre network (default 1)
#   CREATE_OPTIONS   more options of `gcloud compute tpus queued-resources create`, such as --spot
set -euo pipefail
source "$(dirname "$0")/common.sh"
need TPU_NAME "the name of the slice"
need ZONE "such as us-west4-a"
need TPU_TYPE "such as v5litepod-256"
need RUNTIME_VERSION "the VM image for $TPU_TYPE, such as v2-alpha-tpuv5-lite"

resources() {  # runs an action on the queued resource
  run gcloud compute tpus queued-resources "$1" "$TPU_NAME" --zone="$ZONE" "${@:2}"
}

everywhere() {  # runs a shell command on every worker
  resources ssh --node=all --worker=all --command="$1"
}

wait_until_active() {
  local state
  while true; do
    state=$(resources describe --format='value(state.state)')
    case $state in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED)
        fail "$TPU_NAME is $state; start again after: $(dry_run=1 resources delete --force)"
        ;;
    esac
    echo "$TPU_NAME is $state" >&2
    sleep 30
  done
}

nodes=(--node-id="$TPU_NAME")
if [[ ${NUM_SLICES:-1} != 1 ]]; then nodes=(--node-count="$NUM_SLICES" --node-prefix="$TPU_NAME"); fi
if [[ $dry_run ]] || ! resources describe >/dev/null 2>&1; then
  # shellcheck disable=SC2086  # several options
  resources create "${nodes[@]}" --accelerator-type="$TPU_TYPE" --runtime-version="$RUNTIME_VERSION" ${CREATE_OPTIONS:-}
fi
if [[ $dry_run ]]; then resources describe --format='value(state.state)'; else wait_until_active; fi

archive=${TMPDIR:-/tmp}/stgt.tar.gz
run git -C "$(cd "$(dirname "$0")/../.." && pwd)" archive --prefix=stgt/ --output="$archive" HEAD
run gcloud compute tpus queued-resources scp "$archive" "$TPU_NAME:" --zone="$ZONE" --node=all --worker=all
# The Python of the VM images is too old for stgt; uv installs a newer one.
install="rm -rf stgt && tar xzf stgt.tar.gz && cd stgt && curl -LsSf https://astral.sh/uv/install.sh | sh"
everywhere "$install && ~/.local/bin/uv venv --python 3.12 && ~/.local/bin/uv pip install --editable '.[tpu,gcs]'"
everywhere "cd stgt && { nohup .venv/bin/stgt $(quote "${arguments[@]}") >>~/stgt.log 2>&1 </dev/null & }"

dry_run=1  # the following commands are only printed
echo "# follow:  $(resources ssh --command='tail -f stgt.log')"
echo "# stop:    $(resources ssh --node=all --worker=all --command='pkill -TERM -x stgt')"
echo "# delete:  $(resources delete --force)"
