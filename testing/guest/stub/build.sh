#!/bin/sh
# Which directory holds the stub guest's kernel? Prints it; assembles `stub` first where it is missing. What the guest does
# stands in ../README.md. Cached by everything that goes in, like the test guest.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${STEPPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/steppe}

for tool in as ld sha256sum; do
  command -v "$tool" >/dev/null || {
    echo "stub: cannot assemble the stub guest without $tool; run \`make setup\`" >&2
    exit 1
  }
done

key=$({
  cat "$here/build.sh" "$here/stub.s"
  as --version
} | sha256sum | cut -c 1-16)
out=$cache/stub-$key
if [ ! -d "$out" ]; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/stub-tmp.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  trap 'exit 1' HUP INT TERM
  as --64 -o "$work/stub.o" "$here/stub.s"
  # Above the first MiB, which is the firmware's; code and data in one segment.
  ld -m elf_x86_64 -static -nostdlib -N --no-warn-rwx-segments --build-id=none -z noexecstack -s \
    -Ttext-segment=0x100000 -e start -o "$work/stub" "$work/stub.o"
  rm "$work/stub.o"
  chmod 755 "$work"
  # Somebody else may have been faster.
  mv -T "$work" "$out" 2>/dev/null || [ -d "$out" ]
fi
printf '%s\n' "$out"
