#!/usr/bin/env bash
# Trains on Cloud TPU virtual machines.
#
#   export PROJECT=my-project ZONE=us-west4-a NAME=star TYPE=v5litepod-16
#   launch/tpu/vm.sh --queued --spot create
#   launch/tpu/vm.sh install
#   launch/tpu/vm.sh train --config=configs/star_hitsz_vcm.py --workdir=gs://bucket/star
#   launch/tpu/vm.sh logs      # of worker 0; logs 3: of worker 3; Ctrl-C ends the logs only
#   launch/tpu/vm.sh stop      # saves the state; train with the same arguments continues
#   launch/tpu/vm.sh run launch/eval.py --workdir=gs://bucket/star    # while nothing trains
#   launch/tpu/vm.sh --queued delete
#
# Or all of it, repeated whenever Google takes spot chips back, until training is done:
#
#   launch/tpu/vm.sh --queued --spot keep --config=configs/star_hitsz_vcm.py --workdir=gs://bucket/star
#
# Before the verb: --queued (create, delete): wait in Google's queue for free chips; --spot (create):
# cheaper, but Google may take them back; --dry-run: print the commands, run none. TYPE is Google's
# name, which counts cores for v4 and v5p (v4-16 and v5p-16 have 8 chips) and chips for v5e and v6e
# (v5litepod-8, v6e-8). `install` sends the last commit to all workers and stops training there. On
# each worker training is a systemd service, which restarts and continues after a crash or a reboot.
# `keep` leaves running training alone. `run` runs another Python file of the repository on all
# workers and shows its output; if there are several workers, the file must connect them
# (star_jax.distributed.processes.start).
set -euo pipefail

here="$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=launch/tpu/common.sh
source "${here}/common.sh"

main() {
  local queued="" spot="" command="" verbs="create|install|train|run|logs|stop|delete|keep"
  while (($#)) && [[ -z "${command}" ]]; do
    case "$1" in
      --dry-run) dry_run=1 ;;
      --queued) queued=1 ;;
      --spot) spot=1 ;;
      create | install | train | run | logs | stop | delete | keep) command="$1" ;;
      *) die "$1: use [--dry-run] [--queued] [--spot] ${verbs}" ;;
    esac
    shift
  done
  [[ -n "${command}" ]] || die "name a command: ${verbs}"
  no_own_flags "${command}" "$@"
  [[ "${command}" =~ ^(train|run|logs|keep)$ || $# == 0 ]] || die "unexpected argument: $1"
  need PROJECT ZONE NAME
  place=(--project="${PROJECT}" --zone="${ZONE}")
  "${command}" "$@"
}

create() {
  need TYPE
  local image options=("${place[@]}" --accelerator-type="${TYPE}")
  image="$(runtime)"
  [[ -z "${spot}" ]] || options+=(--spot)
  if [[ -n "${queued}" ]]; then
    execute gcloud compute tpus queued-resources create "${NAME}" --node-id="${NAME}" \
      "${options[@]}" --runtime-version="${image}"
  else
    execute gcloud compute tpus tpu-vm create "${NAME}" "${options[@]}" --version="${image}"
  fi
}

# The system image of a generation.
runtime() {
  case "${TYPE}" in
    v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) die "TYPE=${TYPE}: use v4-N, v5litepod-N, v5p-N or v6e-N" ;;
  esac
}

# The image's own Python is too old; uv installs Python 3.11, with which the programs of
# docs/scaling.md were compiled. Training must not lose its environment while it runs, so it is
# stopped first, and saves its state.
install() {
  local archive=star_jax.tar.gz
  [[ -n "${dry_run}" ]] || archive="$(mktemp --suffix=.tar.gz)"
  execute git -C "${here}/../.." archive --format=tar.gz --output="${archive}" HEAD
  execute gcloud compute tpus tpu-vm scp "${archive}" "${NAME}:star_jax.tar.gz" "${place[@]}" \
    --worker=all
  execute rm "${archive}"
  # shellcheck disable=SC2016  # the variables are those of the worker
  on_workers all 'set -e
[ ! -e /etc/systemd/system/star_jax.service ] || sudo systemctl stop star_jax
mkdir -p star_jax
tar --extract --gzip --file star_jax.tar.gz --directory star_jax
cd star_jax
python3 -m pip install --user --quiet uv
~/.local/bin/uv venv --quiet --clear --python 3.11 .venv
~/.local/bin/uv pip install --quiet --python .venv/bin/python \
  --constraint requirements.txt --editable ".[tpu]"
sed "s|@USER@|$USER|; s|@FOLDER@|$PWD|" launch/tpu/star_jax.service |
  sudo tee /etc/systemd/system/star_jax.service >/dev/null
sudo systemctl daemon-reload'
}

train() {
  need_arguments "$@"
  local line
  line="exec .venv/bin/python launch/train.py $(quoted "$@")"
  on_workers all "cd star_jax && printf '%s\n' $(quoted "${line}") > train.sh &&
sudo systemctl enable --quiet star_jax && sudo systemctl restart star_jax"
}

run() {
  (($#)) || die "run needs a file and its arguments, for instance launch/eval.py --workdir=..."
  on_workers all "cd star_jax && exec .venv/bin/python $(quoted "$@")"
}

logs() {
  [[ $# -le 1 && "${1:-0}" =~ ^[0-9]+$ ]] || die "logs takes the number of one worker, not: $*"
  on_workers "${1:-0}" "journalctl --unit=star_jax --output=cat --lines=100 --follow"
}

stop() {
  on_workers all "sudo systemctl disable --quiet --now star_jax"
}

delete() {
  if [[ -n "${queued}" ]]; then
    execute gcloud compute tpus queued-resources delete "${NAME}" "${place[@]}" --force --quiet
  else
    execute gcloud compute tpus tpu-vm delete "${NAME}" "${place[@]}" --quiet
  fi
}

# Creates, installs and trains; checks once a minute, and starts over when the chips are gone. While
# Google does not answer, it does nothing but ask again.
keep() {
  need_arguments "$@"
  need TYPE
  if [[ -n "${dry_run}" ]]; then
    state
    create
    install
    train "$@"
    service
    return
  fi
  local begun="" this=("${BASH_SOURCE[0]}" ${queued:+--queued} ${spot:+--spot})
  while true; do
    case "$(state)" in
      READY)
        case "${begun}:$(service || true)" in
          :active | :activating)
            echo "training is already running; its arguments stay the same"
            begun=wholly
            ;;
          :inactive | :failed | partly:*)
            # Some workers may not take connections yet: then the next round tries again.
            begun=partly
            if "${this[@]}" install && "${this[@]}" train "$@"; then begun=wholly; fi
            ;;
          wholly:inactive) echo "training is done; ${this[*]} delete gives the chips back" && return ;;
          wholly:failed) die "training failed repeatedly; see ${this[*]} logs" ;;
        esac
        ;;
      none)
        begun=""
        "${this[@]}" create || true
        ;;
      PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED)
        echo "the chips are gone; requesting others"
        begun=""
        "${this[@]}" delete || true
        ;;
    esac
    sleep "${POLL_SECONDS:-60}"
  done
}

# Prints the state of the chips; `none` if there are none, `unknown` if Google does not answer.
state() {
  local answer tpus=(gcloud compute tpus) star=(describe "${NAME}" "${place[@]}")
  answer="$(ask "${tpus[@]}" tpu-vm "${star[@]}" --format="value(state)")"
  if [[ "${answer}" == none && -n "${queued}" ]]; then
    answer="$(ask "${tpus[@]}" queued-resources "${star[@]}" --format="value(state.state)")"
  fi
  printf '%s\n' "${answer}"
}

# Runs a command that describes something; prints `none` if Google says that it does not exist.
ask() {
  local errors answer
  errors="$(mktemp)"
  if answer="$(execute "$@" 2>"${errors}")"; then
    printf '%s\n' "${answer}"
  elif grep --quiet --extended-regexp "NOT_FOUND|[Rr]esource .* was not found" "${errors}"; then
    echo none
  else
    cat "${errors}" >&2
    echo "Google does not answer; the next round asks again" >&2
    echo unknown
  fi
  rm "${errors}"
}

# Prints the state of the training service.
service() {
  on_workers 0 "systemctl is-active star_jax"
}

need_arguments() {
  (($#)) || die "${command} needs the arguments of launch/train.py, at least --config and --workdir"
}

# Runs lines of bash on one worker, by its number, or on all.
on_workers() {
  execute gcloud compute tpus tpu-vm ssh "${NAME}" "${place[@]}" --worker="$1" --command="$2"
}

main "$@"
