#!/usr/bin/env bash
# Trains on the TPU nodes of a GKE cluster, as a JobSet.
#
#   export NAME=star IMAGE=us-docker.pkg.dev/my-project/images/star_jax TOPOLOGY=v5e:16x16
#   launch/tpu/gke.sh build
#   launch/tpu/gke.sh --spot submit --config=configs/star_hitsz_vcm.py --workdir=gs://bucket/star
#   launch/tpu/gke.sh logs
#   launch/tpu/gke.sh delete   # saves the state; submit with the same arguments continues
#
# Before the verb: --dry-run: print the commands and the manifest, run none; --spot (submit): take
# spot nodes. kubectl must point to the cluster (gcloud container clusters get-credentials), which
# needs the JobSet controller and a node pool of TOPOLOGY; XPK makes clusters that have both. On
# Autopilot clusters pods must not write to a node's disk: there, remove hostPath from jobset.yaml.
# SERVICE_ACCOUNT names the Kubernetes service account that may use the bucket; "default" if not set.
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
  no_own_flags "${command}" "$@"
  [[ "${command}" == submit || $# == 0 ]] || die "unexpected argument: $1"
  "${command}" "$@"
}

build() {
  need IMAGE
  execute docker build --file "${here}/Dockerfile" --tag "${IMAGE}" "${here}/../.."
  execute docker push "${IMAGE}"
}

submit() {
  need NAME IMAGE TOPOLOGY
  (($#)) || die "submit needs the arguments of launch/train.py, at least --config and --workdir"
  local manifest
  manifest="$(fill "$@")"
  if [[ -n "${dry_run}" ]]; then
    printf '%s\n' "${manifest}"
  fi
  execute kubectl apply --filename=- <<<"${manifest}"
}

# Prints the manifest: the template with the names between @ and @ filled in.
fill() {
  local accelerator shapes chips_a_host hosts text
  local generation="${TOPOLOGY%%:*}" shape="${TOPOLOGY#*:}"
  local flat="2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16"
  local solid="2x2x1, 2x2x2, 2x2x4, 2x4x4 or, in ascending order, multiples of 4 such as 4x4x8"
  case "${TOPOLOGY}" in
    v4:*) accelerator=tpu-v4-podslice shapes="${solid}" ;;
    v5e:*) accelerator=tpu-v5-lite-podslice shapes="${flat}" ;;
    v5p:*) accelerator=tpu-v5p-slice shapes="${solid}" ;;
    v6e:*) accelerator=tpu-v6e-slice shapes="${flat}" ;;
    *) die "TOPOLOGY=${TOPOLOGY}: write v4, v5e, v5p or v6e and the chips, such as v5e:16x16" ;;
  esac
  exists "${generation}" "${shape}" || die "TOPOLOGY=${TOPOLOGY}: ${generation} takes ${shapes}"
  chips_a_host=4
  [[ "${shape}" != 2x4 ]] || chips_a_host=8 # machines of type ct5lp-hightpu-8t or ct6e-standard-8t
  hosts=$((${shape//x/*} / chips_a_host))
  [[ "${NAME}" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "NAME=${NAME}: use up to 40 lowercase letters, digits and -"
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

# Whether a generation has slices of a shape of at least 4 chips. Sources: cloud.google.com/tpu/docs,
# the pages v5e and v6e, and "TPU types and topologies" for the others.
exists() {
  local side="[1-9][0-9]{0,2}" a b c
  case "$1" in
    v5e | v6e) [[ "$2" =~ ^(2x2|2x4|4x4|4x8|8x8|8x16|16x16)$ ]] ;;
    *)
      [[ "$2" =~ ^(2x2x[124]|2x4x4)$ ]] && return
      [[ "$2" =~ ^${side}x${side}x${side}$ ]] || return
      IFS=x read -r a b c <<<"$2"
      ((a % 4 == 0 && b % 4 == 0 && c % 4 == 0 && a <= b && b <= c))
      ;;
  esac
}

# Arguments as JSON strings, which are YAML, too.
json() {
  python3 -c 'import json, sys; print(json.dumps(sys.argv[1:])[1:-1])' "$@"
}

logs() {
  need NAME
  local worker="jobset.sigs.k8s.io/jobset-name=${NAME},batch.kubernetes.io/job-completion-index=0"
  execute kubectl logs --selector="${worker}" --tail=100 --follow
}

delete() {
  need NAME
  execute kubectl delete jobset "${NAME}"
}

main "$@"
