#!/bin/sh
# Which nomad do the demo and the tests run? Prints its path: the one in PATH if it is new enough, else our own build of
# the version in go.mod, with its UI, cached by everything that goes in. Progress on stderr.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${STEPPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/steppe}
# Before 1.11.3 nobody has run our tests; the version in go.mod is the same.
least=1.11.3

say() { printf 'nomad: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

if installed=$(command -v nomad); then
  version=$("$installed" version 2>/dev/null | sed -n 's/^Nomad v\([0-9][0-9.]*\).*/\1/p')
  if [ -n "$version" ] && [ "$(printf '%s\n' "$least" "$version" | sort -V | head -n 1)" = "$least" ]; then
    printf '%s\n' "$installed"
    exit 0
  fi
  say "$installed is ${version:-no version I can read}; $least or later is needed, so I build one"
fi

command -v go >/dev/null || die "neither Nomad $least nor Go is in PATH; install one of them (Go 1.26 or later)"
command -v gcc >/dev/null || die "Nomad's build needs gcc; run \`make setup\`"
# shellcheck source=SCRIPTDIR/flags.sh
. "$here/flags.sh"

key=$({
  cat "$here/go.mod" "$here/go.sum"
  printf '%s\n' "$GOFLAGS"
  go version
} | sha256sum | cut -c 1-16)
out=$cache/nomad-$key
mkdir -p "$cache"

# Two builds at once: the second waits and finds the first one's result.
exec 9>"$cache/nomad.lock"
flock -n 9 || { say 'another build runs; waiting for it' && flock 9; }
if [ -x "$out/nomad" ]; then
  printf '%s\n' "$out/nomad"
  exit 0
fi

# Under the lock, so these belong to builds that were killed.
rm -rf "$cache"/nomad-tmp.*
work=$(mktemp -d "$cache/nomad-tmp.XXXXXX")
watch=''
finish() {
  [ -z "$watch" ] || kill "$watch" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM

say 'building Nomad with its UI; the first build takes about 12 minutes on 2 cores'
start=$(date +%s)
(
  # In steps of a second: what a kill leaves is one short sleep, which holds none of our descriptors.
  n=0
  while sleep 1 >/dev/null 2>&1 && kill -0 "$$" 2>/dev/null; do
    n=$((n + 1))
    [ $((n % 30)) -ne 0 ] || say "still building, $(($(date +%s) - start)) s"
  done
) >/dev/null 9>&- &
watch=$!
(cd "$here" && go build -o "$work/nomad" github.com/hashicorp/nomad) >&2 9>&- ||
  die "the build failed; the lines above say why (Go's modules come from the network)"
kill "$watch" 2>/dev/null || true
watch=''
"$work/nomad" version >&2
chmod 755 "$work"
mv -T "$work" "$out"
say "built $out/nomad in $(($(date +%s) - start)) s"
printf '%s\n' "$out/nomad"
