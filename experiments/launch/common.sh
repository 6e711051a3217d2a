# Shared by the launch scripts. Sets `words`, those given, `arguments`, of `stgt` for training, and `dry_run`, which is
# empty without --dry-run. A script that takes other words than a recipe's sets `usage` first.

# Prints an error and exits.
fail() {
  echo "${0##*/}: error: $1" >&2
  exit 2
}

# need NAME DESCRIPTION: fails if the environment variable NAME is not set.
need() {
  [[ -n ${!1:-} ]] || fail "set $1, $2; the head of $0 lists all settings"
}

# Quotes words for a shell.
quote() {
  local word line='' escaped="'\\''"
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//\'/$escaped}'" ;;
    esac
    line+="$word "
  done
  echo "${line% }"
}

# Runs a command, or prints it with --dry-run.
run() {
  if [[ $dry_run ]]; then quote "$@"; else "$@"; fi
}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
usage=${usage:-RECIPE --workdir gs://BUCKET/RUN [OPTION ...]}
[[ $# -gt 0 && $1 != -* ]] || fail "name a ${usage%% *}: $0 [--dry-run] $usage"
words=("$@")
# --resume continues an interrupted run, and starts a new one if there is no checkpoint.
arguments=(pretrain "$@" --resume)
