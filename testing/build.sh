#!/bin/sh
# Builds the plugin and the shim, optimized, and puts them alone into one folder, as Nomad wants its plugin_dir.
set -eu
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"

cargo build --release --locked --package nomad-driver-microvm --package microvm-shim >&2
mkdir -p "$CARGO_TARGET_DIR/plugins"
for program in nomad-driver-microvm microvm-shim; do
    # Renamed into place: the old file may be running.
    cp "$CARGO_TARGET_DIR/release/$program" "$CARGO_TARGET_DIR/plugins/.$program.part"
    mv "$CARGO_TARGET_DIR/plugins/.$program.part" "$CARGO_TARGET_DIR/plugins/$program"
done
echo "$CARGO_TARGET_DIR/plugins"
