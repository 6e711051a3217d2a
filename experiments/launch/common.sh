# Sourced by the scripts beside it. `arguments` are the words for `stgt pretrain`; `dry_run` is empty or not.

# Ends the script with one line.
fail() {
  echo "${0##*/}: error: $1" >&2
  exit 2
}

# need NAME WHAT: the environment variable NAME must be set.
need() {
  [[ -n ${!1:-} ]] || fail "set $1, $2; the head of $0 lists all settings"
}

# The words as one line that a shell reads back as the same words.
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

# Runs a command; with --dry-run it is printed instead.
run() {
  if [[ $dry_run ]]; then quote "$@"; else "$@"; fi
}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
[[ $# -gt 0 && $1 != -* ]] || fail "name a recipe: $0 [--dry-run] RECIPE --workdir gs://BUCKET/RUN [OPTION ...]"
# A start after a cut-off goes on; where there is no checkpoint yet, --resume starts anew.
arguments=(pretrain "$@" --resume)
