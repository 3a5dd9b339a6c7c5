#!/bin/sh
# Does testing/vm do what it promises, and do the driver and netd do what only it can show? Prints `check` lines.
#
#   testing/vm/test.sh            all checks
#   testing/vm/test.sh NAME...    these
set -u
cd "$(dirname "$0")/../.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"

run=testing/vm/run.sh
work=$(mktemp -d "${TMPDIR:-/tmp}/steppe-vt.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

fail() {
    echo "$*" >&2
    exit 1
}

# How a run must end: its status, and what it says on stdout and stderr.
ends() { # status stdout stderr-pattern argument...
    wanted=$1 out=$2 err=$3
    shift 3
    said=$(mktemp -d "$work/said.XXXXXX")
    status=0
    "$run" "$@" >"$said/out" 2>"$said/err" || status=$?
    [ "$status" = "$wanted" ] || fail "run.sh $*: status $status, not $wanted: $(cat "$said/out" "$said/err")"
    printf '%b' "$out" | cmp -s - "$said/out" || fail "run.sh $*: it wrote $(od -c "$said/out" | head -n 5)"
    if [ -n "$err" ]; then
        grep -qe "$err" "$said/err" || fail "run.sh $*: nothing like '$err' on stderr, but: $(cat "$said/err")"
    elif [ -s "$said/err" ]; then
        fail "run.sh $*: on stderr, $(cat "$said/err")"
    fi
}

# Ends the check where one of two that were begun side by side has failed.
both() { # pid pid
    wait "$1" || failed=1
    wait "$2" || failed=1
    [ -z "${failed-}" ] || exit 1
}

vm_exit_status() {
    # Before there is a machine.
    ends 64 '' 'no PROGRAM' --cpus 1
    ends 64 '' '--cpus takes a number' --cpus 0 true
    ends 64 '' 'no option --cpu:' --cpu 2 true
    ends 64 '' 'no module nosuch' --modules nosuch true
    head -c 64M </dev/zero >"$work/large"
    ends 64 '' 'too little' --memory 128 --file "$work/large" true
    ends 126 '' 'not executable' testing/vm/README.md
    ends 127 '' 'no program ./nosuch' ./nosuch
    mkdir "$work/bin"
    printf '#!/bin/sh\necho no machine today >&2\nexit 3\n' >"$work/bin/qemu-system-x86_64"
    chmod +x "$work/bin/qemu-system-x86_64"
    (
        PATH=$work/bin:$PATH
        ends 125 '' 'QEMU.*no machine today' true
    ) || exit 1

    # What a program writes arrives as it is, each stream for itself; and its arguments and variables before.
    printf '#!/bin/sh\necho "$0: $*, $MORE"\necho error >&2\nexit 7\n' >"$work/program"
    chmod +x "$work/program"
    ends 7 "$work/program: a b *, x y\n" '^error$' --env 'MORE=x y' "$work/program" 'a b' '*' &
    first=$!
    ends 0 'one\ntwo\n' '^three$' sh -c 'echo one; echo two >/dev/stdout; echo three >/dev/stderr' &
    both $first $!
    # One stream stays one, in its order.
    (
        "$run" sh -c 'i=0; while [ $i -lt 300 ]; do echo $((i += 1)); echo $((i += 1)) >&2; done' >"$work/merged" 2>&1
        seq 1 300 | cmp -s - "$work/merged" || fail "the order is not kept: $(tr '\n' ' ' <"$work/merged")"
    ) &
    first=$!
    # More than any buffer on the way, written at the last moment.
    (
        sum=$("$run" sh -c 'seq 1 200000' | cksum)
        [ "$sum" = "$(seq 1 200000 | cksum)" ] || fail 'a megabyte of output does not arrive as it was'
    ) &
    both $first $!
    ends 137 'before\n' '' sh -c 'echo before; kill -KILL $$' &
    first=$!
    ends 127 '' 'nosuch cannot be run in the guest' nosuch &
    both $first $!
    ends 124 'before\n' 'had not ended after 25 s' --timeout 25 sh -c 'echo before; sleep 60' &
    first=$!
    ends 125 'before\n' 'Kernel panic' sh -c 'echo before; sleep 1; echo c >/proc/sysrq-trigger' &
    both $first $!
}

# What lies in the temporary directory, and which processes work there: those of run.sh do.
traces() {
    find "$temp" -mindepth 1 -maxdepth 1
    find /proc -maxdepth 2 -name cwd -lname "$temp/*" 2>/dev/null || true
}
nothing_left() { # after what
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        left=$(traces)
        [ -n "$left" ] || return 0
        sleep 0.2
    done
    fail "left after $1: $left"
}
vm_leaves_nothing() {
    temp=$work/temp
    mkdir "$temp"
    TMPDIR=$temp
    export TMPDIR
    begun=''
    # shellcheck disable=SC2086 # a list
    trap 'kill $begun 2>/dev/null || true' EXIT
    begin() { # name
        env --default-signal=INT "$run" sh -c 'echo running; sleep 60' >"$work/$1" &
        begun="$begun $!"
    }
    up() { # name
        for _ in $(seq 300); do
            if [ -s "$work/$1" ]; then return; fi
            sleep 0.1
        done
        fail "machine $1 does not come up"
    }
    interrupt() { # pid signal status
        kill -s "$2" "$1"
        status=0
        wait "$1" || status=$?
        [ "$status" = "$3" ] || fail "SIG$2 makes it end with $status, not $3"
    }
    # Two side by side, the one of which goes on when the other is interrupted.
    begin one
    one=$!
    begin two
    two=$!
    up one
    up two
    [ "$(traces | wc -l)" -ge 6 ] || fail "the traces of two machines are not found: $(traces)"
    interrupt "$one" INT 130
    [ "$(traces | grep -c /steppe-vm.)" = 1 ] || fail "the traces of one machine are not found: $(traces)"
    interrupt "$two" TERM 143
    nothing_left 'an interrupt'
    # Killed: QEMU dies with it, and the next run removes the directory. That one ends because nobody reads it any more.
    begin three
    up three
    interrupt "$!" KILL 137
    "$run" sh -c 'while :; do echo y; done' | head -n 1 >"$work/one-line"
    [ "$(cat "$work/one-line")" = y ] || fail "the run after a killed one says $(cat "$work/one-line")"
    nothing_left 'a kill'
}

# Controllers that limit, not only names.
vm_has_cgroup2() {
    cat >"$work/cgroup2" <<'END'
#!/bin/sh
set -eu
cd /sys/fs/cgroup
for controller in cpuset cpu io memory pids; do
    grep -qw "$controller" cgroup.controllers || { echo "no controller $controller" && exit 1; }
done
mkdir group
cd group
for file in cpuset.cpus cpu.weight cpu.max io.max memory.max memory.oom.group pids.max cgroup.kill; do
    [ -w "$file" ] || { echo "no $file" && exit 1; }
done
inside() { sh -c 'echo $$ >/sys/fs/cgroup/group/cgroup.procs && exec "$@"' inside "$@"; }
echo 8M >memory.max
status=0
inside dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null || status=$?
[ "$status" = 137 ] || { echo "64 MiB in a group of 8 end with $status" && exit 1; }
grep -qx 'oom_kill 1' memory.events || { cat memory.events && exit 1; }
echo max >memory.max
echo 1 >cpuset.cpus
[ "$(inside grep Cpus_allowed_list /proc/self/status | cut -f 2)" = 1 ] || { echo 'no processor set' && exit 1; }
echo 1 >pids.max
if inside sh -c 'true & wait' 2>/dev/null; then echo 'no limit of processes' && exit 1; fi
cd ..
rmdir group
END
    chmod +x "$work/cgroup2"
    ends 0 '' '' --cpus 2 "$work/cgroup2"
}

# Two hosts at a bridge: their tagged frames pass it, and no more once it filters; those of the VLAN it lets through do.
vm_has_vlan() {
    cat >"$work/vlan" <<'END'
#!/bin/sh
set -eu
ip link add br0 type bridge
host() { # number
    unshare -n sleep 60 &
    host=$!
    until [ "$(readlink "/proc/$host/ns/net")" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
    ip link add "port$1" type veth
    ip link set veth0 name eth0 netns "$host"
    ip link set "port$1" master br0 up
    in_host="nsenter -t $host -n ip"
    $in_host link set eth0 up
    $in_host addr add "10.0.0.$1/24" dev eth0
    $in_host link add link eth0 name tagged type vlan id 5
    $in_host link set tagged up
    $in_host addr add "10.0.5.$1/24" dev tagged
}
host 1
first=$host
host 2
ip link set br0 up
reaches() { nsenter -t "$first" -n ping -q -c 1 -W "$2" "$1" >/dev/null; }
reaches 10.0.0.2 5 || { echo 'the bridge passes nothing' && exit 1; }
reaches 10.0.5.2 5 || { echo 'the bridge does not pass tagged frames' && exit 1; }
echo 1 >/sys/class/net/br0/bridge/vlan_filtering
reaches 10.0.0.2 5 || { echo 'a filtering bridge passes nothing' && exit 1; }
if reaches 10.0.5.2 1; then echo 'a filtering bridge passes what it should not' && exit 1; fi
END
    chmod +x "$work/vlan"
    ends 0 '' '' --modules bridge,8021q,veth "$work/vlan"
}

# The driver on control groups of version 2, with a program of ours in QEMU's place: the plugin's own test in a machine with
# two processors (driver/plugin/src/service/cgroup2_tests.rs).
resources_cgroup2() {
    cargo test --quiet --locked --package nomad-driver-microvm --no-run --message-format=json >"$work/built" ||
        fail "the driver's tests can't be built"
    tests=$(sed -n 's/.*"name":"nomad-driver-microvm".*"test":true}.*"executable":"\([^"]*\)".*/\1/p' "$work/built")
    [ -x "$tests" ] || fail "cargo names no test program of the driver's, but: $tests"
    plugins=${STEPPE_PLUGIN_DIR:-$(testing/build.sh)}
    inmate=${STEPPE_INMATE:-$(testing/build.sh inmate)/qemu-inmate}
    # Its lines are not lines of this suite's checks.
    "$run" --cpus 2 --memory 1024 --timeout 120 --file "$inmate:/opt/steppe/bin/qemu-inmate" \
        --file "$plugins/microvm-shim:/opt/steppe/bin/microvm-shim" --file "$(testing/guest/stub/build.sh)/stub:/opt/steppe/images/stub" \
        "$tests" --ignored --exact service::cgroup2_tests::everything_on_version_2 --nocapture >"$work/version2" 2>&1 ||
        fail "$(sed 's/^/| /' "$work/version2")"
    grep -q '1 passed' "$work/version2" || fail "the test did not run: $(sed 's/^/| /' "$work/version2")"
}

# netd on a kernel with VLANs: all checks in one machine, and the lines are theirs (testing/netd).
netd_checks() { # name...
    cargo build --quiet --locked --package steppe-netd-checks || fail "netd's checks can't be built"
    plugins=${STEPPE_NETD_DIR:-${STEPPE_PLUGIN_DIR:-$(testing/build.sh)}}
    points=${STEPPE_POINTS_PLUGIN_DIR:-$(testing/build.sh points)}
    filters=nf_tables,nft_chain_nat,nft_ct,nft_masq,nft_meta_bridge,nft_nat,nft_objref
    set -- --vlan "$@"
    "$run" --cpus 2 --memory 1024 --timeout 600 --modules "bridge,8021q,dummy,tun,veth,$filters" \
        --file /usr/sbin/ip --file /usr/sbin/bridge --file /usr/sbin/nft --file /usr/bin/unshare \
        --file "$plugins/netd:/opt/steppe/netd" --env STEPPE_NETD_DIR=/opt/steppe \
        --file "$points/netd:/opt/steppe/points/netd" --env STEPPE_POINTS_PLUGIN_DIR=/opt/steppe/points \
        "$CARGO_TARGET_DIR/debug/netd-checks" "$@"
}

failures=0
check() { # name
    start=$(date +%s)
    # In a subshell of its own, in which a failure ends; not behind `if`, which would switch `set -e` off.
    (set -e && "$1")
    if [ $? = 0 ]; then result=passed; else result=failed failures=1; fi
    echo "check $1 $result $(($(date +%s) - start))"
}
wanted() { [ $# = 1 ] || printf '%s\n' "$@" | sed 1d | grep -qx "$1"; } # name argument...
for name in vm_exit_status vm_leaves_nothing vm_has_cgroup2 vm_has_vlan resources_cgroup2; do
    if wanted "$name" "$@"; then check "$name"; fi
done
netd=''
for name in vlan_isolation vlan_trunk vlan_aware_access mtu_dont_fragment spoof_frames netd_crash_matrix_vlan; do
    if wanted "$name" "$@"; then netd="$netd $name"; fi
done
# shellcheck disable=SC2086 # a list of names
if [ -n "$netd" ]; then (netd_checks $netd) || failures=1; fi
exit $failures
