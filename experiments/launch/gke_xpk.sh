#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster: xpk creates a JobSet that runs `stgt pretrain` on every host of every slice.
#
#   WORKLOAD=... CLUSTER=... ZONE=... TPU_TYPE=... IMAGE=... gke_xpk.sh [--dry-run] RECIPE --workdir gs://BUCKET/RUN ...
#
# If a host is lost the job restarts and continues from its newest checkpoint. Settings:
#   WORKLOAD    name of the job
#   CLUSTER     GKE cluster, created with `xpk cluster create`
#   ZONE        zone of the cluster, in the project of `gcloud config`
#   TPU_TYPE    such as v5litepod-256
#   IMAGE       container image with stgt, built from the Dockerfile beside this script and pushed
#   NUM_SLICES  number of slices, connected by the data-centre network (default 1)
set -euo pipefail
source "$(dirname "$0")/common.sh"
need WORKLOAD "the name of the job"
need CLUSTER "the name of the GKE cluster, created with xpk cluster create"
need ZONE "the zone of the cluster, such as us-west4-a"
need TPU_TYPE "such as v5litepod-256"
need IMAGE "a container image with stgt, built from experiments/launch/Dockerfile"

place=(--workload="$WORKLOAD" --cluster="$CLUSTER" --zone="$ZONE")
# xpk sends SIGTERM to the shell that runs the command. With exec stgt receives it and saves a checkpoint.
run xpk workload create "${place[@]}" --tpu-type="$TPU_TYPE" --num-slices="${NUM_SLICES:-1}" --docker-image="$IMAGE" \
  --max-restarts=100 --termination-grace-period-seconds=120 --command="exec stgt $(quote "${arguments[@]}")"
echo "# list:    $(quote xpk workload list --cluster="$CLUSTER" --zone="$ZONE")"
echo "# delete:  $(quote xpk workload delete "${place[@]}")"
