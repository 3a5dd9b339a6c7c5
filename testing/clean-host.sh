#!/usr/bin/env bash
# `make clean-host`: removes everything that the demo, the tests and the builds have left on this machine outside the tree:
# the demo, the tests' directories with the processes, mounts and control groups that belong to them, and the caches.
# It ends tests that are running, too. Does nothing where there is nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
PROGRAM="make clean-host"
AGENTS=${STEPPE_DEMO_DIR:-/var/lib/steppe-demo}
. testing/demo/lib.sh
become_root testing/clean-host.sh

testing/demo/down.sh
STEPPE_DEMO_DIR=/var/lib/steppe-dt testing/demo/down.sh >/dev/null

# The tests' directories, by the names that they give them; somebody's clone of this tree is none. Their processes run a
# program in it, work in it, or name it in their arguments.
temp=${TMPDIR:-/tmp}
removed=0
for directory in "$temp"/steppe-*.?????? "$temp"/steppe-?????? "$temp"/steppe-*.??? "$temp"/sc.??????; do
    [ -d "$directory" ] && [ -O "$directory" ] && [ ! -e "$directory/Cargo.toml" ] || continue
    removed=$((removed + 1))
    echo "removing $directory"
    mapfile -t pids < <(
        find /proc -maxdepth 2 \( -name exe -o -name cwd \) -lname "$directory/*" 2>/dev/null | cut -d / -f 3
        grep -slF -- "$directory/" /proc/[0-9]*/cmdline | cut -d / -f 3
    )
    for pid in "${pids[@]}"; do
        # Not ourselves, whose arguments never name it, and not what has ended meanwhile.
        [ "$pid" = $$ ] || kill -9 "$pid" 2>/dev/null || true
    done
    # Both kinds of layout: the agents' own (lib.sh), and a data_dir somewhere in it.
    AGENTS=$directory
    remove_mounts
    # The names of tasks' control groups begin with their allocation's id, which is a directory's name.
    find "$directory" -maxdepth 6 -type d -regextype posix-extended -regex '.*/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.[^/]*)?' \
        -printf '%f\n' 2>/dev/null | cut -c 1-36 | sort -u | while read -r id; do
        find /sys/fs/cgroup -depth -type d -path "*/$id.*" -exec rmdir {} \; 2>/dev/null || true
    done
    # Hosts of tests' own have parts of the control groups that are named after the directory; the rest of such a host, its
    # network with all links above all, has gone with its processes.
    find /sys/fs/cgroup -depth -type d -path "*/${directory##*/}.*" -exec rmdir {} \; 2>/dev/null || true
    rm -rf "$directory"
done
[ "$removed" != 0 ] || echo "There are no directories of tests in $temp."

# What all tasks of the host share; rmdir leaves what is in use.
if ! another_agent; then
    shared_groups | while read -r group; do rmdir "$group" 2>/dev/null || true; done
fi

cache=${STEPPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/steppe}
if [ -d "$cache" ]; then
    echo "removing $cache ($(du -sh "$cache" | cut -f 1)): Nomad and the test guest; the next build makes them again"
    rm -rf "$cache"
else
    echo "There is no cache in $cache."
fi
echo "Go's and Cargo's own caches are left alone: go clean -cache -modcache, and ~/.cargo, are yours."
