#!/bin/sh
# Which directory holds the test guest's images? Prints it; builds them first where they are missing.
# vmlinuz (bzImage), vmlinux (the ELF inside it) and initrd.img (busybox, guestctl, the modules it loads, root/).
# Installs nothing; the cache is keyed by everything that goes in. Progress on stderr.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${STEPPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/steppe}
# virtio_ring before virtio, virtio_mmio before the drivers on its bus, net_failover before virtio_net, pvpanic before
# its ACPI half; root/init loads them in this order, and leaves out those whose device is missing.
modules='virtio_ring virtio virtio_mmio pvpanic pvpanic-mmio failover net_failover virtio_net virtio_blk virtio-rng
  button evdev'
busybox=/bin/busybox
applets='sh ip httpd sleep'

say() { printf 'guest: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

missing=''
for tool in gcc cpio lz4 zstd xz gzip dpkg-deb apt-get apt-cache flock sha256sum "$busybox"; do
  command -v "$tool" >/dev/null || missing="$missing ${tool##*/}"
done
[ -z "$missing" ] || die "cannot build the guest images without$missing; run \`make setup\`"
"$busybox" --list | grep -qx httpd || die "busybox has no httpd (is busybox-static installed?); run \`make setup\`"

# The meta package names the kernel of today; its version is part of the key.
kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
version=$([ -z "$kernel" ] || apt-cache policy "$kernel" | sed -n 's/^ *Candidate: //p')
[ -n "$version" ] || die "apt does not know linux-image-cloud-amd64; run \`make setup\` (it updates apt's lists)"

key=$({
  cd "$here"
  find build.sh guestctl.c root -type f | LC_ALL=C sort | xargs -d '\n' sha256sum
  printf '%s\n' "$kernel $version"
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
mkdir "$work/deb" "$work/kernel" "$work/root" "$work/out"

say "fetching $kernel $version"
(cd "$work/deb" && apt-get -qq -o APT::Sandbox::User=root download "$kernel=$version" >&2) ||
  die "apt could not fetch $kernel $version; is there a network? Then run \`make setup\` (it updates apt's lists)"
dpkg-deb -x "$work"/deb/*.deb "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* "$work/out/vmlinuz"

# The ELF lies compressed in the bzImage, at an offset that the setup header names (Documentation/arch/x86/boot.rst);
# behind it the kernel's build appends the unpacked size, which lz4, zstd and xz do not know and gzip ends with itself.
say 'cutting vmlinux out of vmlinuz'
image=$work/out/vmlinuz
field() { od -An -t"u$2" -j "$1" -N "$2" "$image" | tr -d ' '; }
[ "$(dd if="$image" bs=1 skip=514 count=4 2>/dev/null)" = HdrS ] || die "$kernel holds no bzImage"
start=$((($(field 497 1) + 1) * 512 + $(field 584 4)))
length=$(field 588 4)
size=$(field $((start + length - 4)) 4)
payload() { tail -c "+$((start + 1))" "$image" | head -c "$1"; }
magic=$(od -An -tx1 -j "$start" -N 4 "$image" | tr -d ' ')
case $magic in
  02214c18) payload $((length - 4)) | lz4 -dcq ;;
  28b52ffd) payload $((length - 4)) | zstd -dcq ;;
  fd377a58) payload $((length - 4)) | xz -dcq ;;
  1f8b08*) payload "$length" | gzip -dcq ;;
  *) die "$kernel is compressed in a way this script does not know (magic $magic)" ;;
esac >"$work/out/vmlinux"
[ "$(stat -c %s "$work/out/vmlinux")" = "$size" ] || die "vmlinux has not the $size bytes that its header promises"
[ "$(od -An -tx1 -N 4 "$work/out/vmlinux" | tr -d ' ')" = 7f454c46 ] || die 'vmlinux is no ELF file'

say 'packing initrd.img'
root=$work/root
cp -R "$here/root/." "$root"
mkdir -p "$root/bin" "$root/dev" "$root/proc" "$root/sys" "$root/lib/modules"
cp "$busybox" "$root/bin/busybox"
for applet in $applets; do ln -s busybox "$root/bin/$applet"; done
for page in poweroff panic reboot exit; do ln -s act "$root/www/cgi-bin/$page"; done
gcc -static -Os -s -Wall -Wextra -Werror -o "$root/bin/guestctl" "$here/guestctl.c"
for module in $modules; do
  file=$(find "$work/kernel/lib/modules" -name "$module.ko")
  [ -n "$file" ] || die "$kernel has no module $module"
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
