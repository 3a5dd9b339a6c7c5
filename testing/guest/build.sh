#!/bin/sh
# Which directory holds the test guest's images? Prints it; builds them first where they are missing.
# vmlinuz (bzImage), vmlinux (the ELF inside it) and initrd.img (busybox, guestctl, the modules it loads, root/).
# Installs nothing; the cache is keyed by everything that goes in. Progress on stderr.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${STEPPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/steppe}
# virtio_ring before virtio, virtio_mmio before the drivers on its bus, net_failover before virtio_net, pvpanic before
# its ACPI half, 8021q after those before it; root/init loads them in this order, and leaves out those that it needs not.
modules='virtio_ring virtio virtio_mmio pvpanic pvpanic-mmio failover net_failover virtio_net virtio_blk virtio-rng
  button evdev llc stp garp mrp 8021q'
busybox=/bin/busybox
applets='sh ip httpd ping sleep'

say() { printf 'guest: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

missing=''
for tool in gcc cpio gzip flock sha256sum "$busybox"; do
  command -v "$tool" >/dev/null || missing="$missing ${tool##*/}"
done
[ -z "$missing" ] || die "cannot build the guest images without$missing; run \`make setup\`"
"$busybox" --list | grep -qx httpd || die "busybox has no httpd (is busybox-static installed?); run \`make setup\`"

# Fetched and unpacked once, for this guest and for the machines of testing/vm.
kernel=$("$here/../vm/kernel.sh")

key=$({
  cd "$here"
  find build.sh guestctl.c root -type f | LC_ALL=C sort | xargs -d '\n' sha256sum
  printf '%s\n' "${kernel##*/}"
  sha256sum "$busybox"
} | sha256sum | cut -c 1-16)
out=$cache/guest-$key
mkdir -p "$cache"

# Two builds at once: the second waits and finds the first one's result.
exec 9>"$cache/guest.lock"
flock 9
if [ -d "$out" ]; then
  printf '%s\n' "$out"
  exit 0
fi

# Under the lock, so these belong to builds that were killed.
rm -rf "$cache"/guest-tmp.*
work=$(mktemp -d "$cache/guest-tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/root" "$work/out"
# The same files under two names.
ln "$kernel/vmlinuz" "$kernel/vmlinux" "$work/out/"

say 'packing initrd.img'
root=$work/root
cp -R "$here/root/." "$root"
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/lib/modules"
cp "$busybox" "$root/bin/busybox"
for applet in $applets; do ln -s busybox "$root/bin/$applet"; done
for page in poweroff panic reboot exit; do ln -s act "$root/www/cgi-bin/$page"; done
gcc -static -Os -s -Wall -Wextra -Werror -o "$root/bin/guestctl" "$here/guestctl.c"
for module in $modules; do
  file=$(find "$kernel/modules" -name "$module.ko")
  [ -n "$file" ] || die "the kernel has no module $module"
  cp "$file" "$root/lib/modules/"
done
find "$root" -exec touch -hd @0 {} + # the same inputs give the same bytes
(cd "$root" && find . -mindepth 1 | LC_ALL=C sort | cpio -o --quiet -H newc -R 0:0 --reproducible) >"$work/initrd.cpio"
# gzip: within the noise of zstd, lz4 and none at boot, and its trailer tells the unpacked size.
gzip -9 -n -c "$work/initrd.cpio" >"$work/out/initrd.img"

chmod 755 "$work/out"
mv -T "$work/out" "$out"
say "built $out"
printf '%s\n' "$out"
