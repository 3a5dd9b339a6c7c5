#!/usr/bin/env bash
# `make bench`: starts a Nomad with our driver and its built-in qemu driver in one client, and measures both; and netd beside
# CNI's bridge plugin.
# Started by testing/prepare.sh. Takes about a quarter of an hour on two cores.
#
#   STEPPE_BENCH_PAIRS=N  STEPPE_BENCH_VMS=N    fewer pairs of starts, fewer machines at once, for a trial (default 40)
#   STEPPE_BENCH_IDLE_SECONDS=N                 for how long idle machines are watched (default 60)
#   STEPPE_BENCH_ONLY="launch crowd"            only these parts of series, launch, crowd, console, netd
set -euo pipefail
cd "$(dirname "$0")/../.."
PROGRAM="make bench"
: "${STEPPE_NOMAD:?testing/prepare.sh sets it: run make bench}" "${STEPPE_PLUGIN_DIR:?}" "${STEPPE_GUEST_DIR:?}"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}

# Built before anybody becomes root.
cargo build --quiet --locked --release --package steppe-bench
mkdir -p target
work=$(mktemp -d /tmp/steppe-bench.XXX)
AGENTS=$work/a
. testing/demo/lib.sh
[ "$(id -u)" = 0 ] || fail "Nomad's client needs root: run it as root"
# netd and CNI work in network namespaces whose names begin so.
export STEPPE_BENCH_SPACES=steppe-bench-$$
finish() {
    for space in $(ip netns list | grep -o "^$STEPPE_BENCH_SPACES-[a-z0-9]*"); do
        # shellcheck disable=SC2046 # a list of numbers
        kill $(ip netns pids "$space") 2>/dev/null || true
        ip netns del "$space" || true
    done
    (agents_remove) || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM

# The built-in driver wants a disk image, one for each machine that runs at the same time.
mkdir "$work/images"
for n in 0 1 2 3 4 5 6 7; do qemu-img create -q -f qcow2 "$work/images/tiny-$n.qcow2" 1M; done
chmod 711 "$work"

# It stands in for QEMU, whose user must find it.
as --64 -o "$work/first.o" testing/bench/first.s
ld -m elf_x86_64 -static -nostdlib --build-id=none -z noexecstack -s -o "$work/first" "$work/first.o"

AGENTS_DRIVERS=microvm,qemu
# The trace lines say when StartTask is called, to the nanosecond, for whatever driver.
AGENTS_CLIENT_MORE="
log_level = \"TRACE\"
log_json  = true
plugin \"qemu\" {
  config {
    image_paths = [\"$work/images\", \"$STEPPE_GUEST_DIR\"]
  }
}"
agents_start 16646 1912000000

export STEPPE_BENCH_AGENTS=$AGENTS STEPPE_BENCH_ADDRESS=$ADDRESS STEPPE_BENCH_IMAGES=$work/images
export STEPPE_BENCH_FIRST=$work/first
export STEPPE_BENCH_OUTPUT=$PWD/target/bench.json
bench=$CARGO_TARGET_DIR/release/steppe-bench
# Real-time priority, so that CPU times are read at once when QEMU begins; not for its children.
if chrt -R -f 10 true 2>/dev/null; then
    chrt -R -f 10 "$bench"
else
    say "no real-time priority is to be had: the CPU figures count some of QEMU's own time against us"
    "$bench"
fi
say "done"
