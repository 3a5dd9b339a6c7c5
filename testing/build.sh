#!/bin/sh
# Builds the plugin and the shim, optimized, and puts them alone into one folder, as Nomad wants its plugin_dir.
# `testing/build.sh points` builds them with crash points, for tests, into another: unoptimized, because most of that is
# built for the unit tests anyway.
set -eu
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"

case ${1-} in
    '') built=release folder=plugins options=--release ;;
    points) built=debug folder=points options='--features crash-points' ;;
    *)
        echo "testing/build.sh: $1 is no kind of build: leave it out, or say points" >&2
        exit 64
        ;;
esac
# shellcheck disable=SC2086 # a list of words
cargo build $options --locked --package nomad-driver-microvm --package microvm-shim >&2
mkdir -p "$CARGO_TARGET_DIR/$folder"
for program in nomad-driver-microvm microvm-shim; do
    # Renamed into place: the old file may be running.
    cp "$CARGO_TARGET_DIR/$built/$program" "$CARGO_TARGET_DIR/$folder/.$program.part"
    mv "$CARGO_TARGET_DIR/$folder/.$program.part" "$CARGO_TARGET_DIR/$folder/$program"
done
echo "$CARGO_TARGET_DIR/$folder"
