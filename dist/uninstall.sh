#!/bin/sh
# Removes what `make install` installed; refuses while a VM lives, since its shim would lose its plugin.
set -eu
DESTDIR=${DESTDIR:-}
: "${PLUGIN_DIR:=/opt/nomad/data/plugins}" "${DOC_DIR:=/usr/local/share/doc/steppe}"

# Prints the ids of all shims: a VM lives exactly as long as its shim.
shims() {
    for process in /proc/[0-9]*; do
        name=$(cat "$process/comm" 2>/dev/null) || continue
        # A zombie is no shim any more.
        ! grep -q '^State:.Z' "$process/status" 2>/dev/null || continue
        # After an upgrade the link ends with " (deleted)"; without root it cannot be read.
        program=$(readlink "$process/exe" 2>/dev/null) || program=
        case "$name:${program##*/}" in
        microvm-shim:* | *:microvm-shim | *:"microvm-shim (deleted)") echo "${process#/proc/}" ;;
        esac
    done
}

# Another root than this machine's has no processes.
if [ -z "$DESTDIR" ]; then
    living=$(shims)
    if [ -n "$living" ]; then
        echo "make uninstall: virtual machines are running, with the shims" $living >&2
        echo "make uninstall: stop their jobs first (nomad job stop NAME); nothing was removed" >&2
        exit 1
    fi
fi

rm -f "$DESTDIR$PLUGIN_DIR/nomad-driver-microvm" "$DESTDIR$PLUGIN_DIR/microvm-shim" "$DESTDIR$DOC_DIR/client.hcl"
rmdir "$DESTDIR$DOC_DIR" 2>/dev/null || true
echo "Removed. Kept: the driver's state_dir (/var/lib/steppe/driver) and the plugin block in Nomad's configuration."
