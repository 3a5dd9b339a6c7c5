# shellcheck shell=bash
# What do the demo and the tests that need an agent share? A Nomad server and a client of their own, and netd for who wants it,
# wholly in one directory. Sourced, after AGENTS was set to that directory:
#
#   bin/            the programs; every process of ours is known by its executable beneath it
#   *.hcl *.log     configuration and log of each agent
#   netd.*          netd's configuration, log and socket
#   server/ client/ their data; driver/ and run/ are the driver's state_dir and run_dir, tmp/ is the agents' TMPDIR
#   ports           first port of the server's three, and of the client's
#   groups.before   Nomad's control groups that were there before us
#   forward.before  whether the host forwarded IPv4 before netd did
#
# Two processes, not one: a server and client in one need half a minute until the node is ready, because the client asks
# for its key before the server has one.

# Nothing of the user's Nomad settings may lead a command to another cluster.
unset "${!NOMAD_@}"

# A unix socket's path has 107 bytes; the driver wants at most 30 of them for its run_dir, which is $AGENTS/run.
AGENTS_PATH_MAX=26

say() { printf '[%3d s] %s\n' "$SECONDS" "$*"; }

# Ends the program with a sentence; before it, what the logs say that may be the cause.
fail() {
    local log
    for log in "$AGENTS/server.log" "$AGENTS/client.log" "$AGENTS/driver/log/plugin.log" "$AGENTS/netd.log"; do
        [ -s "$log" ] || continue
        printf '\n--- the last lines of %s\n' "$log"
        tail -n "${FAIL_LINES:-15}" "$log"
    done >&2
    printf '\n%s: %s\n' "$PROGRAM" "$*" >&2
    exit 1
}

# Becomes root through sudo where it has to, with the variables that matter.
become_root() { # program arguments...
    [ "$(id -u)" != 0 ] || return 0
    command -v sudo >/dev/null || fail "Nomad's client needs root, and sudo is not at hand: run it as root"
    echo "$PROGRAM: Nomad's client needs root; asking sudo" >&2
    exec sudo env PATH="$PATH" HOME="$HOME" STEPPE_CACHE="${STEPPE_CACHE:-}" STEPPE_DEMO_DIR="${STEPPE_DEMO_DIR:-}" \
        STEPPE_NOMAD="${STEPPE_NOMAD:-}" STEPPE_PLUGIN_DIR="${STEPPE_PLUGIN_DIR:-}" \
        STEPPE_GUEST_DIR="${STEPPE_GUEST_DIR:-}" "$@"
}

# Repeats a command until it succeeds. Ends the program when it takes too long, or when an agent of ours has ended.
wait_until() { # seconds what command...
    local deadline=$((SECONDS + $1)) what=$2 name
    shift 2
    until "$@"; do
        for name in "${agents_wanted[@]}"; do
            [ -n "$(agent_pid "$name")" ] || fail "Nomad's $name has ended: its log says why"
        done
        ((SECONDS < deadline)) || fail "$what, for which I waited in vain"
        sleep 0.2
    done
}
# The agents that have to be running by now.
agents_wanted=()

# --- processes

# The ids of all processes whose program lies in bin/ (or in the part of it that is given).
processes() { # [part]
    find /proc -maxdepth 2 -name exe -lname "$AGENTS/bin/${1:-}*" 2>/dev/null | sed 's|/proc/\([0-9]*\)/exe|\1|'
}

# The id of an agent, if it runs.
agent_pid() { # server|client
    local pid
    for pid in $(processes nomad); do
        if tr '\0' '\n' 2>/dev/null <"/proc/$pid/cmdline" | grep -qxF -- "-config=$AGENTS/$1.hcl"; then
            echo "$pid"
            return
        fi
    done
}

no_process() { [ -z "$(processes "$@")" ]; }

# Waits, at most this long, until a command succeeds; says whether it did.
patience() { # seconds command...
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

agent_ended() { [ -z "$(agent_pid "$1")" ]; }

agent_end() { # server|client
    local pid
    pid=$(agent_pid "$1")
    [ -n "$pid" ] || return 0
    kill "$pid" 2>/dev/null || true
    patience 15 agent_ended "$1" || kill -9 "$pid" 2>/dev/null || true
    patience 5 agent_ended "$1"
}

# --- ports

# Whether something listens at this port, on whatever address.
port_taken() {
    local hex tables=() table
    printf -v hex ':%04X' "$1"
    for table in /proc/net/tcp /proc/net/tcp6 /proc/net/udp /proc/net/udp6; do
        [ ! -r "$table" ] || tables+=("$table")
    done
    # 0A is TCP_LISTEN; a UDP socket is taken in any state.
    awk -v port="$hex" 'FNR > 1 && substr($2, length($2) - 4) == port && ($4 == "0A" || FILENAME ~ /udp/) { found = 1 }
        END { exit !found }' "${tables[@]}"
}

# The first of three free ports in a row: http, rpc, serf.
free_ports() { # from
    local port=$1
    while port_taken "$port" || port_taken $((port + 1)) || port_taken $((port + 2)); do
        port=$((port + 10))
        ((port < 20000)) || fail "no three free ports between $1 and 20000"
    done
    echo "$port"
}

# --- asking

# Nomad's command, against our server.
nomad() { NOMAD_ADDR=$ADDRESS NOMAD_CLI_NO_COLOR=1 NOMAD_CLI_SHOW_HINTS=0 "$AGENTS/bin/nomad" "$@"; }

# An answer of Nomad's API, or of a guest.
get() { curl --silent --fail --noproxy '*' --max-time 3 "$1"; }

server_has_key() { get "$ADDRESS/v1/operator/keyring/keys" | grep -q KeyID; }

driver_state() {
    nomad node status -t '{{range .}}{{.Status}} {{with index .Drivers "microvm"}}{{.Healthy}} {{.HealthDescription}}{{end}}
{{end}}' 2>/dev/null || true
}
node_ready() { driver_state | grep -q '^ready true'; }
driver_unhealthy() { driver_state | grep -q '^ready false'; }

# The state of a job's newest allocation: "<id> <client status>", empty before there is one.
newest_allocation() { # job
    nomad job allocs -t '{{range .}}{{.CreateTime}} {{.ID}} {{.ClientStatus}}
{{end}}' "$1" 2>/dev/null | sort -n | sed -n '$s/^[0-9]* //p'
}

allocation_is() { # job status
    local newest
    newest=$(newest_allocation "$1")
    [ "${newest#* }" = "$2" ]
}

# host:port of a service, as Nomad registered it; empty while there is none.
service_address() {
    nomad service info -t '{{range .}}{{.Address}}:{{.Port}}
{{end}}' "$1" 2>/dev/null | sed -n 1p
}

# Why a job's newest allocation does not run, in Nomad's words.
why_not() { # job
    local newest
    newest=$(newest_allocation "$1")
    [ -n "$newest" ] || { nomad job status "$1" && return; }
    nomad alloc status "${newest% *}" | sed -n '/^Recent Events/,$p'
}

# --- starting

write_configuration() { # port of the server's http, port of the client's, first user id of the virtual machines
    cat >"$AGENTS/server.hcl" <<END
data_dir             = "$AGENTS/server"
plugin_dir           = "$AGENTS/server/plugins"
bind_addr            = "127.0.0.1"
name                 = "steppe-server"
disable_update_check = true
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}
ports {
  http = $1
  rpc  = $(($1 + 1))
  serf = $(($1 + 2))
}
server {
  enabled          = true
  bootstrap_expect = 1
  raft_multiplier  = 1
}
END
    cat >"$AGENTS/client.hcl" <<END
data_dir             = "$AGENTS/client"
plugin_dir           = "$AGENTS/bin/plugins"
bind_addr            = "127.0.0.1"
name                 = "steppe-client"
disable_update_check = true
advertise {
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
}
ports {
  http = $2
  rpc  = $(($2 + 1))
  serf = $(($2 + 2))
}
client {
  enabled = true
  servers = ["127.0.0.1:$(($1 + 1))"]

  # Nothing of the demo is reached from another machine.
  network_interface = "lo"

  # On a disk that is fairly full, the logs of what has ended would be gone at once.
  gc_max_allocs            = 1000
  gc_disk_usage_threshold  = 99
  gc_inode_usage_threshold = 99
  options = {
    "driver.allowlist"     = "${AGENTS_DRIVERS:-microvm}"
    "fingerprint.denylist" = "env_aws,env_azure,env_digitalocean,env_gce"
  }
}
plugin "nomad-driver-microvm" {
  config {
    image_paths  = ["$STEPPE_GUEST_DIR"]
    user_network = true
    state_dir    = "$AGENTS/driver"
    run_dir      = "$AGENTS/run"
    netd         = "${AGENTS_NETWORKS+$AGENTS/netd.sock}"

    # Another range than the default: user ids are leased within one run_dir.
    vm_uids = "$3-$(($3 + 999))"
  }
}
telemetry {
  publish_allocation_metrics = true
}
${AGENTS_CLIENT_MORE:-}
END
}

# Copies a program into bin/, by renaming, because the old one may be running.
copy_program() { # from to
    cmp -s "$1" "$2" && return
    ln -fL "$1" "$2.part" 2>/dev/null || cp "$1" "$2.part"
    mv -f "$2.part" "$2"
}

# Nomad's control groups that are shared by all tasks of the host, deepest first.
shared_groups() {
    find /sys/fs/cgroup -depth -type d \( -path '*/nomad' -o -path '*/nomad/share' -o -path '*/nomad/reserve' \
        -o -path '*/nomad.slice' -o -path '*/nomad.slice/share.slice' -o -path '*/nomad.slice/reserve.slice' \) 2>/dev/null ||
        true
}

agent_launch() { # server|client
    # A session of its own: Ctrl-C in make is not for Nomad. Nothing of our environment and descriptors goes with it.
    (
        cd "$AGENTS"
        exec env -i PATH="$PATH:/usr/sbin:/sbin" HOME="$AGENTS" TMPDIR="$AGENTS/tmp" \
            setsid "$AGENTS/bin/nomad" agent -config="$AGENTS/$1.hcl" </dev/null >>"$AGENTS/$1.log" 2>&1 8<&-
    ) &
    # Between the fork and the exec the process is not known as the agent yet.
    patience 5 agent_runs "$1" || fail "Nomad's $1 did not start"
    agents_wanted+=("$1")
}

agent_runs() { [ -n "$(agent_pid "$1")" ]; }

agents_run() { agent_runs server && agent_runs client; }

# Makes sure that server and client run and the driver is healthy; what is there already is used. Sets ADDRESS.
agents_start() { # first port to try for the server, first user id of the virtual machines
    local server_port client_port
    ((${#AGENTS} <= AGENTS_PATH_MAX)) ||
        fail "the directory $AGENTS is too long for the sockets in it: use one of at most $AGENTS_PATH_MAX bytes"
    mkdir -p "$AGENTS"
    # Two at once would start two of each.
    exec 8<"$AGENTS"
    flock -w 120 8 || fail "another one is at work in $AGENTS"

    if agents_run && [ -s "$AGENTS/ports" ]; then
        read -r server_port client_port <"$AGENTS/ports"
        ADDRESS=http://127.0.0.1:$server_port
        agents_wanted=(server client)
        netd_start
        cmp -s "$STEPPE_PLUGIN_DIR/nomad-driver-microvm" "$AGENTS/bin/plugins/nomad-driver-microvm" ||
            say "Nomad runs with an older build of the driver; end it first to try the new one"
        say "Nomad's server and client run already"
    else
        # Half of it may be there. Virtual machines, if any, go on and are found again.
        agent_end client
        agent_end server
        mkdir -p "$AGENTS/bin/plugins" "$AGENTS/server/plugins" "$AGENTS/client" "$AGENTS/tmp"
        chmod 711 "$AGENTS"
        [ -e "$AGENTS/groups.before" ] || shared_groups >"$AGENTS/groups.before"
        copy_program "$STEPPE_NOMAD" "$AGENTS/bin/nomad"
        [ -z "${AGENTS_NETWORKS+set}" ] || copy_program "$STEPPE_PLUGIN_DIR/netd" "$AGENTS/bin/netd"
        copy_program "$STEPPE_PLUGIN_DIR/microvm-shim" "$AGENTS/bin/plugins/microvm-shim"
        copy_program "$STEPPE_PLUGIN_DIR/nomad-driver-microvm" "$AGENTS/bin/plugins/nomad-driver-microvm"
        server_port=$(free_ports "$1")
        client_port=$(free_ports $((server_port + 10)))
        [ "$server_port" = "$1" ] || say "port $1 to $(($1 + 2)) is taken; using $server_port"
        write_configuration "$server_port" "$client_port" "$2"
        echo "$server_port $client_port" >"$AGENTS/ports"
        ADDRESS=http://127.0.0.1:$server_port

        netd_start
        say "starting Nomad's server at $ADDRESS"
        agent_launch server
        wait_until 60 "Nomad's server has no key yet" server_has_key
        say "starting Nomad's client with the driver"
        agent_launch client
    fi
    exec 8<&-
    wait_until 60 "Nomad's client or the driver is not healthy ($(driver_state))" node_ready
}

# Whether it is this network in which our netd was started, and none that a test had.
netd_is_here() { [ "$(cat "$AGENTS/netd.network" 2>/dev/null)" = "$(readlink /proc/self/ns/net)" ]; }
netd_answers() { netd list >/dev/null 2>&1; }
# netd's command, about our netd.
netd() { # subcommand options...
    local subcommand=$1
    shift
    "$AGENTS/bin/netd" "$subcommand" --config "$AGENTS/netd.toml" --socket "$AGENTS/netd.sock" "$@"
}

# Makes sure that netd runs, where AGENTS_NETWORKS is set: to the text of netd.toml, empty for the network that netd brings along.
netd_start() {
    [ -n "${AGENTS_NETWORKS+set}" ] && no_process netd || return 0
    # Two in one network would each take what the other made for their own.
    netd_is_here || ! ip -o link | grep -q '^[0-9]*: nd[btv]' ||
        fail "this host has links of another netd (ip link shows them: nd…), and two would take each other's: use a host without"
    readlink /proc/self/ns/net >"$AGENTS/netd.network"
    printf '%s\n' "$AGENTS_NETWORKS" >"$AGENTS/netd.toml"
    [ -e "$AGENTS/forward.before" ] || cat /proc/sys/net/ipv4/ip_forward >"$AGENTS/forward.before"
    (
        cd "$AGENTS"
        exec env -i PATH="$PATH:/usr/sbin:/sbin" setsid "$AGENTS/bin/netd" serve --config "$AGENTS/netd.toml" \
            --socket "$AGENTS/netd.sock" </dev/null >>"$AGENTS/netd.log" 2>&1 8<&-
    ) &
    patience 10 netd_answers || fail "netd does not answer"
}

# --- stopping

# Ends netd, and what it made goes with it.
netd_end() {
    [ -x "$AGENTS/bin/netd" ] || return 0
    processes netd | xargs -r kill 2>/dev/null || true
    patience 5 no_process netd || processes netd | xargs -r kill -9 2>/dev/null || true
    # A test's network goes by itself, and what is here then is somebody else's.
    netd_is_here || return 0
    netd purge --force >/dev/null || echo "$PROGRAM: what netd made can't be removed" >&2
    # Written only where it differs: it resets that of every link.
    [ ! -e "$AGENTS/forward.before" ] || cmp -s "$AGENTS/forward.before" /proc/sys/net/ipv4/ip_forward ||
        cat "$AGENTS/forward.before" >/proc/sys/net/ipv4/ip_forward
}

# What of ours the kernel still holds, for the moment after its end.
remove_groups() {
    local id group groups=()
    # The names of the tasks' groups begin with the allocation's id.
    for id in $(ls "$AGENTS/client/alloc" "$AGENTS/driver/tasks" 2>/dev/null | grep -oE '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}' |
        sort -u); do
        mapfile -t -O "${#groups[@]}" groups < <(find /sys/fs/cgroup -depth -type d -path "*/$id.*" 2>/dev/null)
    done
    for group in "${groups[@]}"; do
        # A process that has just ended may still be counted.
        patience 5 group_removed "$group" || echo "$PROGRAM: the control group $group can't be removed" >&2
    done
    # What all tasks of the host share goes if we brought it, and if no other agent is there to need it.
    [ -e "$AGENTS/groups.before" ] && ! another_agent || return 0
    shared_groups | while read -r group; do
        grep -qxF "$group" "$AGENTS/groups.before" || rmdir "$group" 2>/dev/null || true
    done
}

group_removed() { [ ! -d "$1" ] || rmdir "$1" 2>/dev/null || [ ! -d "$1" ]; }

another_agent() {
    ps -eo stat=,args= | awk '$1 !~ /^Z/ && $2 ~ /(^|\/)nomad$/ && $3 == "agent" { found = 1 } END { exit !found }'
}

remove_mounts() {
    local mount
    # Octal escapes in the table stand for blanks, which our paths don't have. Deepest first.
    awk -v dir="$AGENTS/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mount; do
        umount "$mount" 2>/dev/null || umount -l "$mount" || echo "$PROGRAM: $mount can't be unmounted" >&2
    done
}

# Stops everything in $AGENTS, gracefully where that is possible, and removes the directory. Works on any remainder.
agents_remove() {
    local port job
    [ -d "$AGENTS" ] || return 0
    if agents_run && read -r port _ <"$AGENTS/ports"; then
        ADDRESS=http://127.0.0.1:$port
        for job in $(get "$ADDRESS/v1/jobs" | grep -o '"ID":"[^"]*"' | cut -d '"' -f 4); do
            say "stopping job $job"
            nomad job stop -detach "$job" >/dev/null || true
        done
        # A guest may take as long as its job's kill_timeout, by default at most 30 s.
        patience 45 no_process plugins/microvm-shim || say "some guest did not shut down in time; it is ended"
    fi
    if ! no_process; then say "stopping Nomad"; fi
    agent_end client || true
    agent_end server || true
    # What is left lost its agent earlier: a virtual machine dies with its shim.
    processes | xargs -r kill 2>/dev/null || true
    patience 3 no_process || processes | xargs -r kill -9 2>/dev/null || true
    patience 5 no_process || fail "these processes do not end: $(processes | tr '\n' ' ')"
    netd_end
    remove_mounts
    remove_groups
    rm -rf "$AGENTS"
}
