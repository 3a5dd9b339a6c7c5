#!/bin/sh
# Builds the plugin, the shim and netd, optimized, and puts them alone into one folder, which may be Nomad's plugin_dir: a
# program that no plugin block names is passed over.
# `testing/build.sh points` builds them with crash points, for tests, into another: unoptimized, because most of that is
# built for the unit tests anyway. `testing/build.sh inmate` builds the program that tests run in QEMU's place.
set -eu
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"

programs='nomad-driver-microvm microvm-shim netd'
packages='--package nomad-driver-microvm --package microvm-shim --package netd'
static=
case ${1-} in
    '') built=release folder=plugins options=--release packages='--package nomad-driver-microvm --package netd' ;;
    points) built=debug folder=points options='--features crash-points' ;;
    inmate) built=release folder=inmate options=--release programs=qemu-inmate packages='--package steppe-inmate' ;;
    *)
        echo "testing/build.sh: $1 is no kind of build: leave it out, or say points or inmate" >&2
        exit 64
        ;;
esac
# shellcheck disable=SC2086 # lists of words
cargo build $options --locked $packages >&2
if [ "$built$folder" = releaseplugins ]; then
    # Once more, without shared libraries: loading them was a fifth of a start's cost.
    RUSTFLAGS='-C target-feature=+crt-static' \
        cargo build --release --locked --target x86_64-unknown-linux-gnu --package microvm-shim >&2
    static=$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release
fi
mkdir -p "$CARGO_TARGET_DIR/$folder"
for program in $programs; do
    # Renamed into place: the old file may be running.
    from=$CARGO_TARGET_DIR/$built
    [ "$program" != microvm-shim ] || from=${static:-$from}
    cp "$from/$program" "$CARGO_TARGET_DIR/$folder/.$program.$$"
    mv "$CARGO_TARGET_DIR/$folder/.$program.$$" "$CARGO_TARGET_DIR/$folder/$program"
done
echo "$CARGO_TARGET_DIR/$folder"
