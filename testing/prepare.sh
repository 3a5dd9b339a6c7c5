#!/bin/sh
# Builds everything that a test needs, then becomes the command given, which finds it by these variables:
#
#   STEPPE_PLUGIN_DIR       folder with the plugin and the shim, optimized
#   STEPPE_NOMAD            a Nomad to run them
#   STEPPE_GUEST_DIR        folder with the guest's kernel and initrd
#   STEPPE_DESCRIPTOR_ROWS  program that prints the descriptors of our Nomad protocol
#   STEPPE_POINTS_PLUGIN_DIR  folder with the plugin and the shim, built with crash points
#   STEPPE_INMATE           the program that tests run in QEMU's place
#   STEPPE_RELEASES         folders with the plugin and the shim of earlier releases (releases.txt), a colon between two
#
# Nomad's first build takes long, most of it on one core: it runs beside the others.
set -eu
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"

logs=$PWD/target/logs
scratch=$(mktemp -d)
mkdir -p "$logs"
nomad_pid=
clean_up() {
    rm -rf "$scratch"
    # Still running only where another build failed or was interrupted; its compilers with it.
    [ -z "$nomad_pid" ] || kill -- "-$nomad_pid" 2>/dev/null || true
}
trap clean_up EXIT
trap 'exit 130' INT TERM

echo "building Nomad, or finding it built (log in target/logs/nomad-build.log)" >&2
setsid testing/nomad/build.sh >"$scratch/nomad" 2>"$logs/nomad-build.log" &
nomad_pid=$!

STEPPE_PLUGIN_DIR=$(testing/build.sh)
cargo build --quiet --locked --package nomad-proto --example descriptor-rows >&2
STEPPE_DESCRIPTOR_ROWS=$CARGO_TARGET_DIR/debug/examples/descriptor-rows
STEPPE_GUEST_DIR=$(testing/guest/build.sh)
STEPPE_RELEASES=
STEPPE_POINTS_PLUGIN_DIR=
STEPPE_INMATE=
case ${1-} in
    # Who only wants to see today's, or to measure it, needs no earlier release, and nothing that crashes.
    testing/demo/* | testing/bench/*) ;;
    *)
        STEPPE_POINTS_PLUGIN_DIR=$(testing/build.sh points)
        STEPPE_INMATE=$(testing/build.sh inmate)/qemu-inmate
        for commit in $(sed -e 's/#.*//' testing/releases.txt); do
            STEPPE_RELEASES=${STEPPE_RELEASES:+$STEPPE_RELEASES:}$(testing/release.sh "$commit")
        done
        ;;
esac

if ! wait "$nomad_pid"; then
    nomad_pid=
    tail -n 40 "$logs/nomad-build.log" >&2
    echo "Nomad could not be built; the whole log: target/logs/nomad-build.log" >&2
    exit 1
fi
nomad_pid=
STEPPE_NOMAD=$(cat "$scratch/nomad")

export STEPPE_PLUGIN_DIR STEPPE_NOMAD STEPPE_GUEST_DIR STEPPE_DESCRIPTOR_ROWS STEPPE_POINTS_PLUGIN_DIR \
    STEPPE_INMATE STEPPE_RELEASES
clean_up
trap - EXIT INT TERM
exec "$@"
