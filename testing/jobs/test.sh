#!/usr/bin/env bash
# Do the examples in jobs/ do what their headers say, and is what is written about them current? Prints `check` lines.
#
#   testing/jobs/test.sh                    all checks; by hand: testing/prepare.sh testing/jobs/test.sh
#   testing/jobs/test.sh update-options     writes the references of options and exit causes into jobs/README.md
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${STEPPE_NOMAD:?run it by testing/prepare.sh}" "${STEPPE_PLUGIN_DIR:?}" "${STEPPE_GUEST_DIR:?}"
PROGRAM=testing/jobs/test.sh
# netd makes links: in a network of our own, which goes with us.
if [ "$(id -u)" = 0 ] && [ -z "${STEPPE_OWN_NETWORK:-}" ]; then
    STEPPE_OWN_NETWORK=1 exec unshare --net -- sh -c 'ip link set lo up && exec "$@"' sh "$PROGRAM" "$@"
fi

reference=jobs/README.md
plugin_says() { "$STEPPE_PLUGIN_DIR/nomad-driver-microvm" "--$1"; }
# What stands in the reference between the marks of a section.
section() { sed -n "/^<!-- nomad-driver-microvm --$1 -->\$/,/^<!-- end of $1 -->\$/p" "$reference" | sed '1,2d' | head -n -2; }

if [ "${1:-}" = update-options ]; then
    for name in options exit-causes; do
        text=$(plugin_says "$name") awk -v begin="<!-- nomad-driver-microvm --$name -->" -v end="<!-- end of $name -->" '
            $0 == end { inside = 0 }
            !inside { print }
            $0 == begin { inside = 1; print "\n" ENVIRON["text"] "\n" }' "$reference" >"$reference.new"
        mv "$reference.new" "$reference"
    done
    exit
fi

work=$(mktemp -d /tmp/steppe-jobs.XXX)
AGENTS=$work/a
. testing/demo/lib.sh
finish() {
    (agents_remove) || true
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM

# --- the checks, each a function that ends its subshell with a message where it does not hold

# `nomad fmt` would change nothing; and it would, were there something to change.
jobs_fmt() {
    "$STEPPE_NOMAD" fmt -check -recursive jobs dist || fail "not as nomad fmt has it: the files above"
    mkdir "$work/bad"
    sed 's/driver = /driver   = /' jobs/hello.nomad.hcl >"$work/bad/hello.nomad.hcl"
    if "$STEPPE_NOMAD" fmt -check "$work/bad" >/dev/null; then fail "a badly formatted job is not found"; fi
}

# The reference in jobs/README.md is what the program prints.
is_current() {
    diff <(section "$1") <(plugin_says "$1") ||
        fail "$reference is not what the driver prints: run testing/prepare.sh testing/jobs/test.sh update-options"
}
jobs_options_current() { is_current options; }
jobs_exit_causes_current() { is_current exit-causes; }

# dist/client.hcl is a configuration, and names each plugin option with its default.
jobs_client_config() {
    # A client has a data_dir by its package.
    echo 'data_dir = "/opt/nomad/data"' >"$work/data.hcl"
    "$STEPPE_NOMAD" config validate dist/client.hcl "$work/data.hcl" || fail "Nomad refuses dist/client.hcl"
    local name default
    plugin_says options | sed -n '/^# Plugin/,/^# Keys/s/^| `\([a-z_]*\)` | [^|]* | `\([^|]*\)` |.*/\1 \2/p' >"$work/options"
    [ -s "$work/options" ] || fail "the driver prints no options"
    while read -r name default; do
        grep -qxF "    $name = $default" dist/client.hcl || fail "dist/client.hcl does not say: $name = $default"
    done <"$work/options"
}

# The allocation's id and exit code, when it has ended.
ended() { # job
    local newest
    newest=$(newest_allocation "$1")
    case ${newest#* } in complete | failed) ;; *) return 1 ;; esac
}
exit_code() { # job
    nomad alloc status -t '{{range .TaskStates}}{{range .Events}}{{if eq .Type "Terminated"}}{{.ExitCode}}{{end}}{{end}}{{end}}' \
        "$(newest_allocation "$1" | cut -d ' ' -f 1)"
}
console() { # job
    nomad alloc logs "$(newest_allocation "$1" | cut -d ' ' -f 1)" | tr -d '\r'
}
console_says() { console "$1" 2>/dev/null | grep -qF "$2"; }
says() { # job text
    patience 10 console_says "$1" "$2" || { console "$1" || true; fail "the console of job $1 does not say: $2"; }
}
run() { nomad job run -detach "jobs/$1.nomad.hcl" >/dev/null || fail "Nomad does not take jobs/$1.nomad.hcl"; }
expect_end() { # job
    patience 90 ended "$1" || { why_not "$1" && fail "job $1 has not ended after 90 s"; }
}

expect_hello() {
    run hello
    local allocation address
    service_answers() { address=$(service_address hello) && [ -n "$address" ] && get "http://$address/" >"$work/page"; }
    patience 90 service_answers || { why_not hello && fail "the guest of job hello does not answer"; }
    grep -q '^Hello' "$work/page" || fail "the guest's page does not say hello"
    allocation=$(newest_allocation hello | cut -d ' ' -f 1)
    check_passes() { get "$ADDRESS/v1/client/allocation/$allocation/checks" | grep -q '"Status":"success"'; }
    patience 30 check_passes || fail "the check of job hello does not pass"
    says hello 'tick 3'
    nomad job stop -detach hello >/dev/null
    expect_end hello
    allocation_is hello complete || fail "job hello did not end well"
    says hello 'steppe-guest: powering off'
    says hello 'steppe-guest: bye'
}

expect_batch() {
    run batch
    expect_end batch
    [ "$(exit_code batch)" = 7 ] || { why_not batch && fail "the exit code of job batch is not 7"; }
    allocation_is batch failed || fail "job batch has not failed"
    says batch 'steppe-guest: exit 7'
    nomad job run -detach -var exit_code=0 jobs/batch.nomad.hcl >/dev/null
    ended_well() { allocation_is batch complete; }
    patience 90 ended_well || { why_not batch && fail "job batch with exit_code=0 is not complete"; }
    [ "$(nomad job allocs -t '{{len .}}' batch)" = 2 ] || fail "job batch was rescheduled"
}

expect_disk() {
    run disk
    expect_end disk
    allocation_is disk complete || { why_not disk && fail "job disk is not complete"; }
    says disk "disk vda serial 'counter' bytes 65536"
    says disk "disk found 'steppe-disk 41"
    says disk "disk wrote 'steppe-disk 42'"
    nomad alloc fs "$(newest_allocation disk | cut -d ' ' -f 1)" vm/local/counter.raw >"$work/disk"
    [ "$(head -c 14 "$work/disk")" = "steppe-disk 42" ] ||
        fail "the file of job disk does not have what the guest wrote"
}

expect_ready() {
    local tried
    run ready
    event() { nomad alloc status "$(newest_allocation ready | cut -d ' ' -f 1)" | grep -qF "$1"; }
    patience 90 event 'the guest is ready after' || { why_not ready && fail "job ready does not say that its guest is ready"; }
    console_says ready 'steppe-guest: ready' || fail "job ready is said to be ready before its console shows it"
    nomad job stop -detach ready >/dev/null
    expect_end ready
    nomad job run -detach -var text=never jobs/ready.nomad.hcl >/dev/null
    given_up() { allocation_is ready failed; }
    patience 90 given_up || { why_not ready && fail "job ready with text=never has not failed"; }
    tried=$(nomad alloc status "$(newest_allocation ready | cut -d ' ' -f 1)" | grep -cF 'was not ready within ready_timeout')
    [ "$tried" -ge 1 ] || fail "job ready with text=never does not say why it failed"
}

# What is on the operator's network gets a page from this address.
page_at() { # address
    patience 30 get "http://$1/" >"$work/page" || fail "nothing answers at $1"
    grep -q '^Hello' "$work/page" || fail "the page at $1 does not say hello"
}
# What the guest of a job's allocation has on its interface, as its console shows it: "IPv4 10.1.0.10/16" and so on.
console_of() { nomad alloc logs "$1" | tr -d '\r'; }
allocations() { # job
    nomad job allocs -t '{{range .}}{{if eq .ClientStatus "running"}}{{.ID}}
{{end}}{{end}}' "$1" 2>/dev/null | grep . || true
}
run_so_many() { [ "$(allocations "$1" | wc -l)" = "$2" ]; }
all_stopped() { # job
    nomad job stop -detach "$1" >/dev/null
    patience 60 run_so_many "$1" 0 || fail "job $1 does not end"
}
services_are() { # name address...
    local name=$1
    shift
    [ "$(nomad service info -t '{{range .}}{{.Address}}:{{.Port}}
{{end}}' "$name" 2>/dev/null | grep . | sort)" = "$(printf '%s\n' "$@" | sort)" ]
}

expect_static() {
    run static
    patience 90 services_are static 10.1.0.10:80 10.1.0.11:80 || { why_not static && fail "job static is not registered"; }
    page_at 10.1.0.10
    page_at 10.1.0.11
    all_stopped static
}

expect_two-nics() {
    local address line
    run two-nics
    has_address() { address=$(service_address two-nics) && [ -n "$address" ]; }
    patience 90 has_address || { why_not two-nics && fail "job two-nics is not registered"; }
    page_at "$address"
    says two-nics 'steppe-guest: eth0 on default, '
    line=$(console two-nics | grep '^steppe-guest: eth1 on lan, ')
    address=${line#*IPv4 }
    page_at "${address%%/*}"
    all_stopped two-nics
}

expect_canary() {
    local first second id
    one_runs() { run_so_many canary 1; }
    two_run() { run_so_many canary 2; }
    run canary
    patience 90 one_runs || { why_not canary && fail "job canary does not run"; }
    first=$(allocations canary)
    on_lan() { console_of "$1" 2>/dev/null | grep '^steppe-guest: eth0 on lan, '; }
    patience 60 on_lan "$first" >/dev/null || fail "the guest of job canary does not show its address"
    nomad job run -detach -var version=2 jobs/canary.nomad.hcl >/dev/null
    patience 90 two_run || { why_not canary && fail "job canary has no canary"; }
    for id in $(allocations canary); do [ "$id" = "$first" ] || second=$id; done
    patience 60 on_lan "$second" >/dev/null || fail "the canary does not show its address"
    [ "$(on_lan "$first")" != "$(on_lan "$second")" ] || fail "the canary has the address of the other one"
    promoted() { nomad job promote -detach canary >/dev/null 2>&1; }
    patience 60 promoted || fail "the canary can't be promoted"
    patience 60 one_runs || fail "the old version of job canary goes on"
    [ "$(allocations canary)" = "$second" ] || fail "the canary has not become the job"
    all_stopped canary
}

# A job for a network that this host's kernel may not be able to have; if so, Nomad must say that no node can run it, and the
# check is one that was skipped.
needs_kernel() { # job network
    local why
    why=$(netd list | sed -n "s/^$2: //p")
    [ -n "$why" ] || return 0
    nomad job validate "jobs/$1.nomad.hcl" >"$work/validate" || { cat "$work/validate" && fail "job $1 is not valid"; }
    # 1: it would make allocations, or can't.
    nomad job plan "jobs/$1.nomad.hcl" >"$work/plan" 2>&1 || [ $? = 1 ]
    grep -qF "driver.microvm.network.$2" "$work/plan" || { cat "$work/plan" && fail "nomad job plan $1 does not say what lacks"; }
    echo "job $1 is valid, and not run: $why" >"$work/skipped"
    return 1
}

expect_vlan() {
    needs_kernel vlan tenant-a || return 0
    run vlan
    both_run() { run_so_many vlan 2; }
    patience 90 both_run || { why_not vlan && fail "job vlan does not run"; }
    says vlan 'steppe-guest: eth0 on tenant-a, '
    all_stopped vlan
}

expect_router() {
    needs_kernel router trunk || return 0
    run router
    patience 90 console_says router 'steppe-guest: ready' || { why_not router && fail "job router does not run"; }
    says router 'VLANs 100 200'
    all_stopped router
}

# What the headers of the files ask for. We are a machine on the network "lan".
links_make() {
    local link
    ! ip link show br0 >/dev/null 2>&1 || return 0
    ip link add br0 type bridge
    ip address add 10.1.0.1/16 dev br0
    ip link set br0 up
    for link in eth1 eth2; do
        ip link add "$link" type veth peer name "$link.far"
        ip link set "$link" up
        ip link set "$link.far" up
    done
}

# An agent that has all networks that the files ask for; the checks share it.
agents_ready() {
    become_root "$PROGRAM"
    links_make
    AGENTS_NETWORKS='
[network.default]
kind = "nat"
ipv4 = { subnet = "10.83.0.0/20", gateway = "10.83.0.1" }

[network.lan]
kind = "bridge"
bridge = "br0"
ipv4 = { subnet = "10.1.0.0/16", gateway = "10.1.0.1" }

[network.tenant-a]
kind = "vlan"
uplink = "eth1"
vid = 100
ipv4 = { subnet = "10.100.0.0/16", gateway = "10.100.0.1" }
ipv6 = { prefix = "fd00:100::/64" }

[network.trunk]
kind = "vlan-aware"
uplink = "eth2"
vids = ["100", "200"]
'
    agents_start 15646 1911000000
}

# Every file in jobs/, run by an agent as it stands, does what its header says.
jobs_run() {
    local job
    agents_ready
    for job in jobs/*.nomad.hcl; do
        job=${job#jobs/} job=${job%.nomad.hcl}
        declare -F "expect_$job" >/dev/null || fail "no test knows jobs/$job.nomad.hcl"
        # What not every kernel can run is a check of its own.
        ! declare -F "jobs_run_$job" >/dev/null || continue
        say "job $job"
        "expect_$job"
    done
}

jobs_run_vlan() {
    agents_ready
    expect_vlan
}
jobs_run_router() {
    agents_ready
    expect_router
}

failures=0
check() { # name
    local start=$SECONDS
    rm -f "$work/skipped"
    # In a subshell of its own, in which a failure ends: `if` and `||` would switch `set -e` off.
    set +e
    (set -e && "$1")
    local status=$?
    set -e
    if ((status == 0)) && [ -s "$work/skipped" ]; then
        echo "check $1 skipped $((SECONDS - start)) $(cat "$work/skipped")"
    elif ((status == 0)); then
        echo "check $1 passed $((SECONDS - start))"
    else
        echo "check $1 failed $((SECONDS - start))"
        failures=1
    fi
}
for name in jobs_fmt jobs_options_current jobs_exit_causes_current jobs_client_config jobs_run jobs_run_vlan \
    jobs_run_router; do
    [ $# -gt 0 ] && [ "$1" != "$name" ] || check "$name"
done
exit $failures
