# Shared by the launch scripts. Sets `arguments` for stgt, and `dry_run`, which is empty without --dry-run.

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
[[ $# -gt 0 && $1 != -* ]] || fail "name a recipe: $0 [--dry-run] RECIPE --workdir gs://BUCKET/RUN [OPTION ...]"
# --resume continues an interrupted run, and starts a new one if there is no checkpoint.
arguments=(pretrain "$@" --resume)
