#!/bin/sh
# Removes what `make install` installed; refuses while a VM lives, since its shim would lose its plugin.
set -eu
DESTDIR=${DESTDIR:-}
: "${PLUGIN_DIR:=/opt/nomad/data/plugins}" "${DOC_DIR:=/usr/local/share/doc/steppe}" "${SBIN_DIR:=/usr/local/sbin}"
: "${UNIT_DIR:=/usr/local/lib/systemd/system}" "${NETWORK_DIR:=/usr/local/lib/systemd/network}"
: "${NETWORKMANAGER_DIR:=/etc/NetworkManager/conf.d}" "${CONFIG_DIR:=/etc/netd}"

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

# netd's links and filters go while its program is still there; without machines there is no more than bridges.
if [ -z "$DESTDIR" ] && [ -x "$SBIN_DIR/netd" ]; then
    if [ -d /run/systemd/system ]; then
        systemctl disable --quiet --now netd.service 2>/dev/null || true
    fi
    if ! "$SBIN_DIR/netd" purge; then
        echo "make uninstall: netd's links could not be removed; nothing else was" >&2
        exit 1
    fi
fi

# A configuration that somebody wrote stays.
if cmp -s "$DESTDIR$DOC_DIR/netd.toml" "$DESTDIR$CONFIG_DIR/netd.toml"; then
    rm -f "$DESTDIR$CONFIG_DIR/netd.toml"
fi
rm -f "$DESTDIR$PLUGIN_DIR/nomad-driver-microvm" "$DESTDIR$PLUGIN_DIR/microvm-shim" "$DESTDIR$SBIN_DIR/netd" \
    "$DESTDIR$UNIT_DIR/netd.service" "$DESTDIR$NETWORK_DIR/05-netd.link" "$DESTDIR$NETWORK_DIR/05-netd.network" \
    "$DESTDIR$NETWORKMANAGER_DIR/netd.conf" "$DESTDIR$DOC_DIR/client.hcl" "$DESTDIR$DOC_DIR/netd.toml"
rmdir "$DESTDIR$DOC_DIR" "$DESTDIR$CONFIG_DIR" 2>/dev/null || true
if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
echo "Removed. Kept: the driver's state_dir (/var/lib/steppe/driver), the plugin block in Nomad's configuration, and what you"
echo "wrote in $CONFIG_DIR."
