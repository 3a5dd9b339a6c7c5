#!/usr/bin/env bash
# Does the demo work from a clean clone, and does it leave the host as it was? Prints one `check` line.
#
# Cloned is what is committed. The caches of this tree are used; for a run from nothing, give it empty ones:
#   STEPPE_CACHE=$(mktemp -d) CARGO_TARGET_DIR=$(mktemp -d) testing/demo/test.sh
# The demo of the test has a directory and ports of its own, so that yours can go on.
#
# It clones and builds here, and runs the demo in a network of its own, because netd makes links.
set -euo pipefail
cd "$(dirname "$0")/../.."
tree=$PWD

work=$(mktemp -d /tmp/steppe-clone.XXXXXX)
export STEPPE_DEMO_DIR=/var/lib/steppe-dt
export STEPPE_DEMO_PORT=14646
# Next to the tree's own build: the clone's is another folder, but most of the crates are the same.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$tree/target}/demo-test

result=failed reason="it ended early"
finish() {
    [ "$result" = passed ] || { [ -d "$work/clone" ] && make_clone demo-stop; } || true
    rm -rf "$work"
    echo "check demo_from_clean_clone $result $SECONDS ${reason}"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM

fail() {
    reason=$*
    exit 1
}

# What on the host could be left behind, one line each, sorted. A demo of yours is part of it, before and after.
host() {
    {
        # Without zombies: they are their parent's, and hold nothing.
        ps -eo stat=,args= | awk '$1 !~ /^Z/ && $2 ~ /(^|\/)(nomad|nomad-driver-microvm|microvm-shim|conformance\.test|qemu-system-[^\/]*)$/ {
            $1 = "process"; print }'
        awk '$8 ~ /^[\/@]/ && /nomad|steppe|plugin|qmp|control\.sock/ { print "socket", $8 }' /proc/net/unix
        awk '{ print "mount", $2 }' /proc/mounts
        find /sys/fs/cgroup -type d -path '*nomad*' | sed 's/^/group /'
        inside ip -o link | awk -F': ' '{ print "link", $2 }'
        inside nft list tables
        inside sed 's/^/forwarding /' /proc/sys/net/ipv4/ip_forward
        find /run /var/lib /tmp -maxdepth 1 \( -name 'steppe*' -o -name 'plugin*' -o -name '*omad*' \) ! -path "$work" |
            sed 's/^/path /'
        find /run/steppe* -maxdepth 2 2>/dev/null | sed 's/^/path /' || true
    } | sort -u
}

[ "$(id -u)" = 0 ] || fail "root is needed for a network of the test's own: run it with sudo"
# The network is there as long as this process, which ends with us.
exec 7> >(exec unshare --net -- sh -c 'ip link set lo up && exec cat >/dev/null')
network=/proc/$!/ns/net
inside() { nsenter --net="$network" -- "$@" 7>&-; }
make_clone() { inside make -C "$work/clone" --no-print-directory "$@"; }

git -C "$tree" rev-parse --quiet --verify HEAD >/dev/null || fail "nothing is committed, so there is nothing to clone"
git clone --quiet "$tree" "$work/clone"
# Here, where there is a way out, what the demo needs is fetched and built; and what an interrupted run of this test left is
# removed, which is not this run's doing.
make -C "$work/clone" --no-print-directory setup
(cd "$work/clone" && testing/prepare.sh testing/demo/down.sh >/dev/null) || fail "the clone can't be built"
[ "$(readlink "$network")" != "$(readlink /proc/self/ns/net)" ] || fail "there is no network of the test's own"
host >"$work/before"

make_clone demo 2>&1 | tee "$work/first"
address=$(sed -n 's/^A microVM answers at http:\/\/\([0-9.]*:[0-9]*\),.*/\1/p' "$work/first")
told=$(sed -n 's/^  kernel \(.*\), up \([0-9.]*\) s$/\1 \2/p' "$work/first")
server=$(sed -n 's/^  export NOMAD_ADDR=//p' "$work/first")
[ -n "$address" ] && [ -n "$told" ] && [ -n "$server" ] || fail "make demo does not say address, kernel and uptime"

registered=$(NOMAD_ADDR=$server inside "$STEPPE_DEMO_DIR/bin/nomad" service info \
    -t '{{range .}}{{.Address}}:{{.Port}}{{end}}' hello)
[ "$registered" = "$address" ] || fail "Nomad registered $registered, make demo says $address"
ask() { inside curl --silent --fail --noproxy '*' --max-time 5 "http://$address/cgi-bin/status"; }
uptime_of() { ask | sed -n 's/.*"uptime":\([0-9]*\).*/\1/p'; }
ask | grep -qF "\"release\":\"${told% *}\"" || fail "the guest at $address has another kernel than ${told% *}"

# The commands that it prints work, as they are.
console=$(sed -n 's/^  follow its console *\(.* alloc logs\) -f \(-job hello\)$/\1 \2/p' "$work/first")
# shellcheck disable=SC2086 # a command line
NOMAD_ADDR="$server" inside $console | grep -q 'steppe-guest: ready' || fail "the printed command does not show the console"

# A second time: found running, and the guest goes on.
before=$(uptime_of)
make_clone demo >"$work/second" 2>&1 || { cat "$work/second" && fail "a second make demo fails"; }
grep -qF "http://$address," "$work/second" || fail "a second make demo finds another guest"
# Half of it gone: taken up again, and the guest goes on.
kill_client() { # by its own command line, which names the directory of this test
    local file
    for file in /proc/[0-9]*/cmdline; do
        if tr '\0' '\n' 2>/dev/null <"$file" | grep -qxF -- "-config=$STEPPE_DEMO_DIR/client.hcl"; then
            file=${file#/proc/}
            kill -9 "${file%/cmdline}"
        fi
    done
}
kill_client
make_clone demo >"$work/third" 2>&1 || { cat "$work/third" && fail "make demo fails after the client was killed"; }
grep -qF "http://$address," "$work/third" || fail "after the client was killed make demo finds another guest"
(($(uptime_of) > before)) || fail "the guest was started anew"

# By these names what is the demo's is known.
{ echo "$STEPPE_DEMO_DIR" && echo "$work" && ls "$STEPPE_DEMO_DIR/client/alloc"; } >"$work/ours"
make_clone demo-stop || fail "make demo-stop fails"
left_behind() {
    host >"$work/after"
    comm -13 "$work/before" "$work/after" >"$work/left"
    # Somebody else's agents on this machine start and end things all the time; then only what is surely ours counts.
    if grep -h '^process' "$work/before" "$work/after" | grep -qv -F -f "$work/ours"; then
        grep -F -f "$work/ours" "$work/left" || true
    else
        cat "$work/left"
    fi
}
# The kernel takes a moment to forget sockets and control groups.
for _ in 1 2 3 4 5; do
    left=$(left_behind)
    [ -n "$left" ] || break
    sleep 1
done
[ -z "$left" ] || { echo "$left" && fail "the demo left on the host: $(tr '\n' ';' <<<"$left")"; }
missing=$(comm -23 "$work/before" "$work/after" | grep -E '^(mount /(proc|sys|dev|run|var)|link) ' || true)
[ -z "$missing" ] || fail "the demo removed from the host: $(tr '\n' ';' <<<"$missing")"
make_clone demo-stop >/dev/null || fail "a second make demo-stop fails"
result=passed reason=
