#!/bin/sh
# Installs the Debian packages of testing/packages.txt that are missing, as root or through sudo; says what it does.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "make setup: $*" >&2
    exit 1
}

wanted=$(sed 's/#.*//' testing/packages.txt)
command -v dpkg-query >/dev/null ||
    fail "this is no Debian; install what corresponds to:" $wanted

missing=
for package in $wanted; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done

if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif command -v sudo >/dev/null; then
        as_root=sudo
    else
        fail "these packages are missing, and neither root nor sudo is at hand:$missing"
    fi
    echo "make setup: installing$missing${as_root:+ (through sudo)}" >&2
    $as_root apt-get update -q >&2
    # shellcheck disable=SC2086 # a list of words
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing >&2
fi

command -v cargo >/dev/null ||
    fail "cargo is missing: install rustup (https://rustup.rs); it fetches the toolchain of rust-toolchain.toml by itself"
if ! command -v go >/dev/null; then
    echo "make setup: go is missing (https://go.dev/dl, 1.21 or newer): Nomad cannot be built, so a new enough one has to be in PATH" >&2
fi
