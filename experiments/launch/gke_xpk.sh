#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster: xpk makes a JobSet that runs `stgt pretrain` on every host of every slice.
#
#   WORKLOAD=... CLUSTER=... ZONE=... TPU_TYPE=... IMAGE=... gke_xpk.sh [--dry-run] RECIPE --workdir gs://BUCKET/RUN ...
#
# A host that is lost restarts the job, which goes on from its newest checkpoint.
#   WORKLOAD    name of the job
#   CLUSTER     made by `xpk cluster create`
#   ZONE        of the cluster; the project is that of `gcloud config`
#   TPU_TYPE    such as v5litepod-256
#   IMAGE       container image with stgt, built from the Dockerfile beside this script and pushed
#   NUM_SLICES  joined over the data centre's network (1)
set -euo pipefail
source "$(dirname "$0")/common.sh"
need WORKLOAD "the name of the job"
need CLUSTER "the name of the GKE cluster, made by xpk cluster create"
need ZONE "the cluster's, such as us-west4-a"
need TPU_TYPE "such as v5litepod-256"
need IMAGE "a container image with stgt, built from experiments/launch/Dockerfile"

place=(--workload="$WORKLOAD" --cluster="$CLUSTER" --zone="$ZONE")
# exec: xpk sends SIGTERM to the shell that runs the command, and stgt must get it to save.
run xpk workload create "${place[@]}" --tpu-type="$TPU_TYPE" --num-slices="${NUM_SLICES:-1}" --docker-image="$IMAGE" \
  --max-restarts=100 --termination-grace-period-seconds=120 --command="exec stgt $(quote "${arguments[@]}")"
echo "# list:    $(quote xpk workload list --cluster="$CLUSTER" --zone="$ZONE")"
echo "# delete:  $(quote xpk workload delete "${place[@]}")"
