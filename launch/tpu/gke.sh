#!/usr/bin/env bash
# Trains on the TPU nodes of a GKE cluster, as a JobSet.
#
#   export NAME=star IMAGE=us-docker.pkg.dev/my-project/images/star_jax TOPOLOGY=v5e:16x16
#   launch/tpu/gke.sh build
#   launch/tpu/gke.sh --spot submit --config=configs/star_hitsz_vcm.py --workdir=gs://bucket/star
#   launch/tpu/gke.sh logs
#   launch/tpu/gke.sh delete   # saves the state; submit with the same arguments continues
#
# --dry-run: print the commands and the manifest, run none. --spot (submit): take spot nodes. kubectl
# must point to the cluster (gcloud container clusters get-credentials), which needs the JobSet
# controller and a node pool of TOPOLOGY; XPK makes clusters that have both. SERVICE_ACCOUNT names
# the Kubernetes service account that may use the bucket; "default" if not set.
set -euo pipefail

here="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=launch/tpu/common.sh
source "${here}/common.sh"

main() {
  local spot="" command=""
  while (($#)) && [[ -z "${command}" ]]; do
    case "$1" in
      --dry-run) dry_run=1 ;;
      --spot) spot=1 ;;
      build | submit | logs | delete) command="$1" ;;
      *) die "$1: use [--dry-run] [--spot] build|submit|logs|delete" ;;
    esac
    shift
  done
  [[ -n "${command}" ]] || die "name a command: build, submit, logs or delete"
  [[ "${command}" == submit || $# == 0 ]] || die "unexpected argument: $1"
  "${command}" "$@"
}

build() {
  need IMAGE
  run docker build --file "${here}/Dockerfile" --tag "${IMAGE}" "${here}/../.."
  run docker push "${IMAGE}"
}

submit() {
  need NAME IMAGE TOPOLOGY
  (($#)) || die "submit needs the arguments of launch/train.py, at least --config and --workdir"
  local manifest
  manifest="$(fill "$@")"
  if [[ -n "${dry_run}" ]]; then
    printf '%s\n' "${manifest}"
  fi
  run kubectl apply --filename=- <<<"${manifest}"
}

# Writes the manifest: the template with what is between @ and @ filled in.
fill() {
  local accelerator chips_a_host hosts text
  local generation="${TOPOLOGY%%:*}" shape="${TOPOLOGY#*:}"
  [[ "${TOPOLOGY}" =~ ^[a-z0-9]+:[0-9]+(x[0-9]+)+$ ]] ||
    die "TOPOLOGY=${TOPOLOGY}: write generation and chips in each dimension, such as v5e:16x16"
  case "${generation}" in
    v4) accelerator=tpu-v4-podslice ;;
    v5e) accelerator=tpu-v5-lite-podslice ;;
    v5p) accelerator=tpu-v5p-slice ;;
    v6e) accelerator=tpu-v6e-slice ;;
    *) die "TOPOLOGY=${TOPOLOGY}: the generation must be v4, v5e, v5p or v6e" ;;
  esac
  chips_a_host=4
  [[ "${shape}" != 2x4 ]] || chips_a_host=8 # machines of type ct5lp-hightpu-8t or ct6e-standard-8t
  hosts=$((${shape//x/*} / chips_a_host))
  ((hosts)) || die "TOPOLOGY=${TOPOLOGY}: less than the ${chips_a_host} chips of a machine"
  [[ "${NAME}" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "NAME=${NAME}: use up to 40 small letters, digits and -"
  text="$(<"${here}/jobset.yaml")"
  text="${text//@NAME@/"${NAME}"}"
  text="${text//@ACCELERATOR@/"${accelerator}"}"
  text="${text//@SHAPE@/"${shape}"}"
  text="${text//@HOSTS@/"${hosts}"}"
  text="${text//@CHIPS@/"${chips_a_host}"}"
  text="${text//@SPOT@/"${spot:+cloud.google.com/gke-spot: \"true\"}"}"
  text="${text//@SERVICE_ACCOUNT@/"$(json "${SERVICE_ACCOUNT:-default}")"}"
  text="${text//@IMAGE@/"$(json "${IMAGE}")"}"
  text="${text//@COMMAND@/"[$(json python launch/train.py "$@")]"}"
  printf '%s' "${text}"
}

# Arguments as JSON strings, which are YAML, too.
json() {
  python3 -c 'import json, sys; print(json.dumps(sys.argv[1:])[1:-1])' "$@"
}

logs() {
  need NAME
  local worker="jobset.sigs.k8s.io/jobset-name=${NAME},batch.kubernetes.io/job-completion-index=0"
  run kubectl logs --selector="${worker}" --tail=100 --follow
}

delete() {
  need NAME
  run kubectl delete jobset "${NAME}"
}

main "$@"
