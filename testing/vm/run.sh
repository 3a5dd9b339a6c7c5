#!/bin/sh
# Runs a program as root in a small virtual machine with Debian's kernel, as if it ran here; README.md and --help tell more.
set -eu
umask 022

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${STEPPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/steppe}
temp=${TMPDIR:-/tmp}
busybox=/bin/busybox

# run.sh's contract with init.c, spelled as QEMU says it: 2 * 49 + 1.
ENDED=99
# A boot takes 1 to 2 s; on a host as busy as this limit expects, something else is wrong.
BOOT_LIMIT=30
BOOTS=3

help() {
  cat <<'END'
run.sh [OPTION]... PROGRAM [ARGUMENT]...

Runs PROGRAM as root in a virtual machine of its own: Debian's kernel, emulated, so that any host will do. What it writes
appears here while it writes, on stdout and stderr; its exit status is run.sh's. Nothing is left behind.

  PROGRAM with a slash is a file of this host: it is copied, with the libraries it needs, to the same path.
  Without a slash it is a program of the machine: one of busybox's, or what --file put into its PATH.

  --cpus N              processors (1)
  --memory MIB          memory (512, or what the copied files need)
  --modules NAMES       kernel modules to load, by name, a comma between two; what they need comes along
  --file SRC[:DEST]     copies a file or a directory of this host, with the libraries it needs; to the same path without DEST
  --env NAME=VALUE      sets a variable; otherwise there are PATH and HOME
  --timeout SECONDS     ends the machine after this time (60)
  --help                prints this text

  --modules, --file and --env may be repeated.

Exit status: the program's; 128 and the signal's number if a signal ended it; and, each with a sentence on stderr,
  64   wrong use
  124  the program had not ended after --timeout
  125  the machine failed: its kernel panicked, it did not boot, QEMU ended
  126  PROGRAM is not executable
  127  there is no PROGRAM
END
}

say() { printf 'vm: %s\n' "$*" >&2; }
die() { # status sentence
  status=$1
  shift
  say "$*"
  exit "$status"
}
wrong() { die 64 "$*: see $0 --help"; }
number() { # option value low high
  case $2 in
    '' | *[!0-9]* | 0?* | ??????*) wrong "$1 takes a number from $3 to $4, not '$2'" ;;
  esac
  [ "$2" -ge "$3" ] && [ "$2" -le "$4" ] || wrong "$1 takes a number from $3 to $4, not '$2'"
}

cpus=1 memory='' modules='virtio_mmio virtio_console' files='' timeout=60
newline='
'
environment='PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/busybox
HOME=/root'
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h)
      help
      exit 0
      ;;
    --cpus | --memory | --modules | --file | --env | --timeout) [ $# -gt 1 ] || wrong "$1 takes a value" ;;
  esac
  case $1 in
    --cpus) number "$1" "$2" 1 16 && cpus=$2 ;;
    --memory) number "$1" "$2" 96 65536 && memory=$2 ;;
    --modules) modules="$modules $(printf '%s' "$2" | tr ',' ' ')" ;;
    --file) files=$files$newline$2 ;;
    --env)
      case $2 in
        *"$newline"*) wrong "--env takes one line" ;;
        [A-Za-z_]*=*) environment=$environment$newline$2 ;;
        *) wrong "--env takes NAME=VALUE, not '$2'" ;;
      esac
      ;;
    --timeout) number "$1" "$2" 1 86400 && timeout=$2 ;;
    --)
      shift
      break
      ;;
    -*) wrong "there is no option $1" ;;
    *) break ;;
  esac
  shift 2
done
[ $# -gt 0 ] || wrong 'no PROGRAM is named'
case $1 in
  */*)
    [ -e "$1" ] || die 127 "there is no program $1"
    [ -f "$1" ] && [ -x "$1" ] || die 126 "$1 is not executable"
    files=$files$newline$1
    ;;
esac

missing=''
for tool in gcc cpio strip ldd awk flock setpriv timeout sha256sum qemu-system-x86_64 "$busybox"; do
  command -v "$tool" >/dev/null || missing="$missing ${tool##*/}"
done
[ -z "$missing" ] || die 125 "no virtual machine without$missing; run \`make setup\`"
kernel=$("$here/kernel.sh") || die 125 'there is no kernel, see above'

# The directories of runs that were killed: nobody holds their locks any more.
for left in "$temp"/steppe-vm.??????; do
  if [ -O "$left" ] && [ -e "$left/lock" ] && flock -n "$left/lock" true; then rm -rf "$left"; fi
done

work=$(mktemp -d "$temp/steppe-vm.XXXXXX")
machine=''
clean_up() {
  [ -z "$machine" ] || kill "$machine" 2>/dev/null || true
  exec 5>&- 6>&-
  wait
  rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
# Whoever reads us has gone.
trap 'exit 141' USR1
# Every process below inherits the lock and holds it as long as it lives. Nobody sees it before it is held.
exec 9>"$work/locked"
flock 9
mv "$work/locked" "$work/lock"

# Packs a directory; the same contents give the same bytes.
pack() { (cd "$1" && find . -mindepth 1 | LC_ALL=C sort | cpio -o --quiet -H newc -R 0:0 --reproducible); }

# The links of a merged /usr, which a copied file's path may lead through.
links() { # root
  for folder in bin sbin lib lib64; do
    mkdir -p "$1/usr/$folder"
    ln -s "usr/$folder" "$1/$folder"
  done
}

# Copies a file as what it is, not as a link to it. An executable loses its debug information: that is most of it.
copy_file() { # source destination
  mkdir -p "$(dirname "$stage$2")"
  case $(head -c 4 "$1" | od -An -c | tr -d ' ') in
    177ELF)
      if [ -x "$1" ] && strip --strip-debug -o "$stage$2" "$1" 2>/dev/null; then return; fi
      ;;
  esac
  cp -L --preserve=mode,timestamps "$1" "$stage$2"
}

# Copies the libraries that files need, each to its own place.
copy_libraries() { # file...
  needed=$(ldd "$@" 2>/dev/null | sort -u) || true
  absent=$(printf '%s\n' "$needed" | sed -n 's/^[[:space:]]*\(.*\) => not found$/\1/p')
  [ -z "$absent" ] || die 125 "this host has no library" "$absent"
  printf '%s\n' "$needed" | sed -n 's/^[[:space:]]*\([^ ]* => \)\{0,1\}\(\/[^ ]*\) (0x.*/\2/p' | sort -u >"$work/libraries"
  while read -r library; do
    [ -e "$stage$library" ] || {
      mkdir -p "$(dirname "$stage$library")"
      cp -L "$library" "$stage$library"
    }
  done <"$work/libraries"
}

# What every machine has: kept, and keyed by all that goes in.
shell=$(readlink -f /bin/sh)
base=$cache/vm-$(cat "$here/run.sh" "$here/init.c" "$here/tsc.c" "$busybox" "$shell" | sha256sum | cut -c 1-16)
if [ ! -d "$base" ]; then
  stage=$work/base
  mkdir -p "$stage" "$work/kept"
  links "$stage"
  for folder in busybox dev etc proc root run sys tmp var/lib vm/lib vm/root; do mkdir -p "$stage/$folder"; done
  ln -s /run "$stage/var/run"
  chmod 1777 "$stage/tmp"
  chmod 700 "$stage/root"
  cp "$busybox" "$stage/busybox/busybox"
  "$busybox" --list | grep -vx busybox | while read -r applet; do ln -s busybox "$stage/busybox/$applet"; done
  # Not busybox's own, which runs its applets instead of the programs in PATH.
  copy_file "$shell" /usr/bin/sh
  copy_libraries "$shell"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"$stage/etc/passwd"
  printf 'root:x:0:\ntty:x:5:\nkvm:x:104:\nnogroup:x:65534:\n' >"$stage/etc/group"
  printf '127.0.0.1 localhost vm\n::1 localhost\n' >"$stage/etc/hosts"
  gcc -static -Os -s -Wall -Wextra -Werror -o "$stage/init" "$here/init.c" &&
    gcc -O2 -Wall -Wextra -Werror -o "$work/kept/tsc" "$here/tsc.c" || die 125 "the machine's own programs can't be built"
  pack "$stage" >"$work/kept/base.cpio"
  mkdir -p "$cache"
  chmod 755 "$work/kept"
  # Renamed within one file system; somebody else may have been faster.
  part=$(mktemp -d "$cache/vm-tmp.XXXXXX")
  mv "$work/kept" "$part/kept"
  mv -T "$part/kept" "$base" 2>/dev/null || [ -d "$base" ]
  rm -rf "$part" "$stage"
fi

"$base/tsc" >"$work/tsc" &
measuring=$!

# What this run adds.
stage=$work/stage
mkdir -p "$stage/vm/lib"
links "$stage"
printf '%s\n' "$cpus" >"$stage/vm/processors"
printf '%s\n' "$environment" | tr '\n' '\0' >"$stage/vm/environment"
# One stream here, a terminal or a log, is one stream there: then the order of its lines is the program's.
if [ "$(readlink /proc/$$/fd/1)" = "$(readlink /proc/$$/fd/2)" ]; then : >"$stage/vm/merge"; fi

: >"$work/programs"
printf '%s\n' "$files" | sed 1d >"$work/files"
while IFS= read -r word; do
  source=$word
  destination=''
  case $word in
    *:/*) source=${word%%:/*} destination=/${word#*:/} ;;
  esac
  [ -e "$source" ] || wrong "--file: there is no $source"
  [ -n "$destination" ] || destination=$(realpath -s "$source")
  case $destination/ in
    /dev/* | /proc/* | /sys/*) wrong "--file: nothing can be put into $destination" ;;
  esac
  if [ -d "$source" ]; then
    mkdir -p "$stage$destination"
    cp -R "$source/." "$stage$destination"
    find "$source/" -type f -perm /111 >>"$work/programs"
    find "$source/" -type f -name '*.so' >>"$work/programs"
  else
    copy_file "$source" "$destination"
    [ ! -x "$source" ] || realpath "$source" >>"$work/programs"
  fi
done <"$work/files"
if [ -s "$work/programs" ]; then
  while IFS= read -r program; do copy_libraries "$program"; done <"$work/programs"
fi
case $1 in
  */*)
    program=$(realpath -s "$1")
    shift
    set -- "$program" "$@"
    ;;
esac
printf '%s\0' "$@" >"$stage/vm/command"
[ ! -d "$stage/tmp" ] || chmod 1777 "$stage/tmp"

# Each module after those that it needs.
# shellcheck disable=SC2086 # a list of names
printf '%s\n' $modules | awk '
  function name(path) { sub(/.*\//, "", path); sub(/\.ko$/, "", path); gsub(/-/, "_", path); return path }
  function load(module,  words, count, i) {
    if (module in done) return
    done[module] = 1
    count = split(needs[module], words, " ")
    for (i = 1; i <= count; i++) load(name(words[i]))
    print module, path[module]
  }
  FILENAME != "-" { file = substr($1, 1, length($1) - 1); path[name(file)] = file; $1 = ""; needs[name(file)] = $0; next }
  { wanted = $1; gsub(/-/, "_", wanted); if (wanted in path) load(wanted); else print wanted }
' "$kernel/modules/modules.dep" - >"$work/modules"
while read -r module path; do
  if [ -z "$path" ]; then
    # Part of the kernel is as good as loaded.
    sed 's|.*/||; s|\.ko$||; s|-|_|g' "$kernel/modules/modules.builtin" | grep -qx "$module" ||
      wrong "--modules: the kernel has no module $module"
    continue
  fi
  cp "$kernel/modules/$path" "$stage/vm/lib/$module.ko"
  printf '%s\n' "$module" >>"$stage/vm/modules"
done <"$work/modules"

{
  cat "$base/base.cpio"
  pack "$stage"
} >"$work/initrd"
rm -rf "$stage"
size=$((($(stat -c %s "$work/initrd") >> 20) + 1))
# The image and its unpacked files, which may take half of the memory; and the kernel and the program.
least=$((2 * size + 80))
if [ -z "$memory" ]; then
  memory=$((3 * size + 256))
  [ "$memory" -ge 512 ] || memory=512
fi
[ "$memory" -ge "$least" ] || die 64 "--memory $memory is too little for $size MiB of files: at least $least"
# QEMU 7.2's microvm does not boot with exactly this.
[ "$memory" != 2048 ] || memory=2047

wait "$measuring"
read -r tsc <"$work/tsc"

# Waits for the machine's first word, its end or the limit.
first_word() {
  limit=$((BOOT_LIMIT * 20))
  while [ ! -s words ] && [ "$limit" -gt 0 ] && kill -0 "$machine" 2>/dev/null; do
    sleep 0.05
    limit=$((limit - 1))
  done
  word=$(head -n 1 words)
}

# After QEMU's end: everything that it said is passed on.
ended() {
  machine=''
  exec 5>&- 6>&-
  wait "$stdout" "$stderr" || true
}

# Relative names: a comma in a path would mean something to QEMU.
cd "$work"
mkfifo stdout stderr
# The kernel's console is a file here, and shown where the machine fails.
arguments="-M microvm,acpi=on,rtc=on,pit=on,pic=on -accel tcg,thread=multi -cpu max -smp $cpus -m ${memory}M
  -nodefaults -no-user-config -display none -no-reboot -bios qboot.rom -initrd initrd
  -chardev file,id=console,path=console -serial chardev:console -device isa-debug-exit,iobase=0x501,iosize=2
  -device virtio-serial-device,bus=virtio-mmio-bus.1
  -chardev file,id=stdout,path=stdout -device virtserialport,nr=1,chardev=stdout
  -chardev file,id=stderr,path=stderr -device virtserialport,nr=2,chardev=stderr
  -chardev file,id=words,path=words -device virtserialport,nr=3,chardev=words"
boot=0
while :; do
  boot=$((boot + 1))
  : >words
  : >console
  # Both ends are open before anybody uses them, and ours until QEMU has ended: nobody waits for an end that never comes.
  exec 5<>stdout 6<>stderr 3<stdout 4<stderr
  { cat <&3 || kill -USR1 $$; } 4<&- 5>&- 6>&- 9>&- &
  stdout=$!
  { cat <&4 || kill -USR1 $$; } >&2 3<&- 5>&- 6>&- 9>&- &
  stderr=$!
  exec 3<&- 4<&-
  # Killed with us, however we end; `timeout` passes on what it is told.
  # shellcheck disable=SC2086 # a list of words
  setpriv --pdeathsig KILL timeout -k 5 "$timeout" setpriv --pdeathsig KILL \
    qemu-system-x86_64 $arguments -kernel "$kernel/vmlinux" \
    -append "console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz=$tsc tsc=reliable" </dev/null >qemu 2>&1 5>&- 6>&- &
  machine=$!
  first_word
  case $word in
    started | failed) break ;;
  esac
  if [ -z "$word" ] && ! kill -0 "$machine" 2>/dev/null; then break; fi
  kill "$machine" 2>/dev/null || true
  wait "$machine" 2>/dev/null || true
  ended
  [ "$boot" -lt "$BOOTS" ] || die 125 "the machine did not boot in $BOOTS tries of $BOOT_LIMIT s; is the host very busy?"
  say 'the boot hangs, as emulated ones do now and then where the host is very busy; once more'
done
rm initrd
status=0
wait "$machine" || status=$?
ended

end=$(sed -n 2p words)
case $end in
  'exit '*) exit "${end#exit }" ;;
  'signal '*) exit $((128 + ${end#signal })) ;;
esac
case $status in
  124 | 137) die 124 "$1 had not ended after $timeout s" ;;
esac
panic=$(grep -m 1 -o 'Kernel panic.*' console | tr -d '\r') || true
tr -d '\r' <console | tail -n 40 | sed 's/^/vm: console: /' >&2
sed 's/^/vm: QEMU: /' qemu >&2
if [ -n "$panic" ]; then die 125 "the machine failed: $panic"; fi
if [ "$status" = "$ENDED" ]; then die 125 'the machine failed before the program ran, its console says why'; fi
die 125 "the machine ended without a word of the program's end (QEMU's exit status is $status)"
