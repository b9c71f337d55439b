# Functions of vm.sh and gke.sh, which source this file.
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

# Stops if a flag of the script follows its verb, where it would be ignored or go to training.
no_own_flags() {
  local verb="$1" word flag
  shift
  for word in "$@"; do
    if [[ "${word//_/-}" =~ ^--?(dry-run|queued|spot|help)(=|$) ]]; then
      flag="--${BASH_REMATCH[1]}"
      die "${word}: flags of the script come before the verb: $0 ${flag} ${verb} ..."
    fi
  done
}

# Runs a command, or with --dry-run only prints it, quoted so that it can be pasted.
execute() {
  if [[ -n "${dry_run}" ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# Prints arguments as words of a command line for another bash.
quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s' "${words% }"
}
