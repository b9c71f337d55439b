# What vm.sh and gke.sh share; they source it.
# shellcheck shell=bash

dry_run=""

die() {
  printf 'error: %s\n' "$1" >&2
  exit 2
}

# Stops with a message if one of the named variables is empty or not set.
need() {
  local variable
  for variable in "$@"; do
    [[ -n "${!variable:-}" ]] || die "set the variable ${variable} first; see the top of $0"
  done
}

# Runs a command, or with --dry-run only prints it, quoted so that it could be pasted.
run() {
  if [[ -n "${dry_run}" ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Arguments as words of a command line for another bash.
quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}
