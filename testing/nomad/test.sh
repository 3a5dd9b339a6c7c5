#!/bin/sh
# Does Nomad's own code accept our plugin? Builds the conformance tests once and runs them, with -test.v.
#   STEPPE_PLUGIN_DIR       directory of nomad-driver-microvm, microvm-shim and netd (needed)
#   STEPPE_POINTS_PLUGIN_DIR  the first two, built with crash points (crash_matrix needs it): what ../build.sh points prints
#   STEPPE_DESCRIPTOR_ROWS  program descriptor-rows of the crate nomad-proto (needed)
#   STEPPE_GUEST_DIR        the test guest's images (default: what ../guest/build.sh prints)
#   STEPPE_STUB_DIR         the stub guest's kernel (default: what ../guest/stub/build.sh prints)
# Arguments go to the tests: `test.sh -test.run TestConformanceLoader`. NOMAD_TEST_LOG_LEVEL=trace shows Nomad's logs.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${STEPPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/steppe}
# shellcheck source=SCRIPTDIR/flags.sh
. "$here/flags.sh"

command -v go >/dev/null || {
  echo 'conformance: Go is not in PATH; install Go 1.26 or later' >&2
  exit 1
}
guest=${STEPPE_GUEST_DIR:-$("$here/../guest/build.sh")}
stub=${STEPPE_STUB_DIR:-$("$here/../guest/stub/build.sh")}
mkdir -p "$cache"
echo 'conformance: building the tests (Nomad is part of them: minutes the first time, seconds later)' >&2
(
  flock 9
  cd "$here" && go test -c -o "$cache/conformance.test" .
) 9>"$cache/conformance.lock" >&2

# Short, because the paths of unix sockets in it are limited. What the tests and the harness leave is removed below.
work=$(mktemp -d /tmp/sc.XXXXXX)
chmod 711 "$work"
groups() {
  find /sys/fs/cgroup -depth -type d \( -path '*/nomad' -o -path '*/nomad/*' -o -path '*/nomad.slice' -o \
    -path '*/nomad.slice/*' \) 2>/dev/null || true
}
groups | sort >"$work/groups.before"
clean() {
  # Task directories hold tmpfs mounts; -l, because a failed test may have left a process inside.
  awk -v dir="$work/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mount; do
    umount -l "$mount"
  done
  # Control groups that were not there before, deepest first; one that is in use stays.
  groups | while read -r group; do
    grep -qxF "$group" "$work/groups.before" || rmdir "$group" 2>/dev/null || true
  done
  rm -rf "$work"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM

cp "$cache/conformance.test" "$work/conformance.test" # another run may replace it meanwhile
cd "$here"
set -- "$work/conformance.test" -test.v -test.timeout 15m "$@"
# Root's tests start netd, in a network of their own: its links and filters are in nobody's way, and go with it.
# shellcheck disable=SC2016 # the inner shell's
[ "$(id -u)" != 0 ] || set -- unshare --net sh -c 'ip link set lo up && exec "$@"' sh "$@"
env TMPDIR="$work" STEPPE_GUEST_DIR="$guest" STEPPE_STUB_DIR="$stub" NOMAD_TEST_LOG_LEVEL="${NOMAD_TEST_LOG_LEVEL:-off}" "$@"
