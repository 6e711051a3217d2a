#!/usr/bin/env bash
# Builds a split of a shard set on Google Cloud Dataflow: starts `stgt data build` here, whose shards are built there.
#
#   PROJECT=... REGION=... TEMP=gs://... IMAGE=... dataflow_build.sh [--dry-run] SOURCE --out gs://BUCKET/SHARDS ...
#
# Started again after any end, it goes on with the shards that are finished. Settings:
#   PROJECT       of Google Cloud
#   REGION        such as us-central1
#   TEMP          folder in a bucket for Dataflow's own files
#   IMAGE         built from dataflow.Dockerfile of this commit, with the Python and the Apache Beam that run here
#   MAX_WORKERS   machines (default 100)
#   BEAM_OPTIONS  more options of the pipeline, such as --worker_machine_type=n2-highcpu-8
set -euo pipefail
usage="SOURCE --annotations DIR --videos gs://BUCKET/VIDEOS --out gs://BUCKET/SHARDS [OPTION ...]"
source "$(dirname "$0")/common.sh"
need PROJECT "of Google Cloud"
need REGION "such as us-central1"
need TEMP "a folder in a bucket, such as gs://BUCKET/temp"
need IMAGE "built from experiments/launch/dataflow.Dockerfile"

options="--project=$PROJECT --region=$REGION --temp_location=$TEMP --sdk_container_image=$IMAGE"
options+=" --max_num_workers=${MAX_WORKERS:-100} --experiments=use_runner_v2 ${BEAM_OPTIONS:-}"
run "${STGT:-.venv/bin/stgt}" data build "${words[@]}" --beam-runner DataflowRunner --beam-options="${options% }"
