#!/bin/sh
# Which directory holds Debian's kernel for virtual machines, unpacked? Prints it; fetches the package first where it is missing.
#
#   vmlinuz   bzImage
#   vmlinux   the ELF inside it
#   modules/  every module, uncompressed, as below /lib/modules/RELEASE, with modules.dep
#   release   the kernel's RELEASE
#
# Installs nothing; the cache is keyed by the package's version and this file. Progress on stderr.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${STEPPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/steppe}
busybox=/bin/busybox

say() { printf 'kernel: %s\n' "$*" >&2; }
die() {
  say "$*"
  exit 1
}

# Asking apt takes a second, so its answer is kept as long as its lists, its settings and this file are the same.
stamp=$({
  cat "$here/kernel.sh"
  find /var/lib/apt/lists /etc/apt -type f -printf '%p %s %T@\n' 2>/dev/null | LC_ALL=C sort
} | sha256sum | cut -c 1-16)
if read -r then name 2>/dev/null <"$cache/kernel-now" && [ "$then" = "$stamp" ] && [ -d "$cache/$name" ]; then
  printf '%s\n' "$cache/$name"
  exit 0
fi

missing=''
for tool in lz4 zstd xz gzip dpkg-deb apt-get apt-cache flock "$busybox"; do
  command -v "$tool" >/dev/null || missing="$missing ${tool##*/}"
done
[ -z "$missing" ] || die "cannot unpack a kernel without$missing; run \`make setup\`"
"$busybox" --list | grep -qx depmod || die "busybox has no depmod (is busybox-static installed?); run \`make setup\`"

# The meta package names the kernel of today; its version is part of the key.
kernel=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
version=$([ -z "$kernel" ] || apt-cache policy "$kernel" | sed -n 's/^ *Candidate: //p')
[ -n "$version" ] || die "apt does not know linux-image-cloud-amd64; run \`make setup\` (it updates apt's lists)"

key=$({
  cat "$here/kernel.sh"
  printf '%s\n' "$kernel $version"
} | sha256sum | cut -c 1-16)
out=$cache/kernel-$key
mkdir -p "$cache"

# Two at once: the second waits and finds the first one's result.
exec 9>"$cache/kernel.lock"
flock 9
answer() {
  printf '%s %s\n' "$stamp" "${out##*/}" >"$cache/kernel-now"
  printf '%s\n' "$out"
}
if [ -d "$out" ]; then
  answer
  exit 0
fi

# Under the lock, so these belong to builds that were killed.
rm -rf "$cache"/kernel-tmp.*
work=$(mktemp -d "$cache/kernel-tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$work/deb" "$work/package" "$work/out"

say "fetching $kernel $version"
(cd "$work/deb" && apt-get -qq -o APT::Sandbox::User=root download "$kernel=$version" >&2) ||
  die "apt could not fetch $kernel $version; is there a network? Then run \`make setup\` (it updates apt's lists)"
dpkg-deb -x "$work"/deb/*.deb "$work/package"
cp "$work"/package/boot/vmlinuz-* "$work/out/vmlinuz"

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

# Newer Debians compress modules; a guest that loads a few of them is built sooner from what is not.
find "$work/package/lib/modules" -name '*.ko.xz' -exec xz -d {} +
release=$(basename "$work"/package/lib/modules/*)
"$busybox" depmod -b "$work/package" "$release"
printf '%s\n' "$release" >"$work/out/release"
mv "$work/package/lib/modules/$release" "$work/out/modules"
[ -s "$work/out/modules/modules.dep" ] || die "$kernel has no modules"

chmod 755 "$work/out"
mv -T "$work/out" "$out"
say "unpacked to $out"
answer
