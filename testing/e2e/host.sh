#!/bin/sh
# A host of its own on this machine: its own network, /sys and part of each hierarchy of control groups. It is there for as
# long as its first process lives; with its last one everything in it that the kernel keeps is gone.
#
#   host.sh first PART                            becomes the first process: prints `ready`, ends with its standard input
#   host.sh in PID PART DIRECTORY COMMAND...      becomes a command there; PID is the first process
#
# PART names the control groups that are the host's root ones. They stay: whoever gave the name removes them.
#
# Nomad's agents need groups of their own: those on one host share what they reserve cores in. `ip netns exec` won't do: it
# mounts a /sys without control groups, and the agent then goes on without them.
set -eu
groups=/sys/fs/cgroup
is_version_2() { [ -e "$groups/cgroup.controllers" ]; }
# The folders of version 1's hierarchies. `cpu` may be a link to `cpu,cpuacct`.
hierarchies() {
  for file in "$groups"/*/tasks; do
    [ -L "${file%/tasks}" ] || printf '%s\n' "${file%/tasks}"
  done
}

# Puts this process into a control group that is made.
join() {
  if is_version_2; then
    mkdir -p "$groups/$1"
    echo $$ >"$groups/$1/cgroup.procs"
    return
  fi
  for hierarchy in $(hierarchies); do
    mkdir -p "$hierarchy/$1"
    # A new cpuset is empty, and takes no process.
    for kind in cpus mems; do
      [ ! -e "$hierarchy/$1/cpuset.$kind" ] || cat "$hierarchy/cpuset.$kind" >"$hierarchy/$1/cpuset.$kind"
    done
    echo $$ >"$hierarchy/$1/cgroup.procs"
  done
}

# Mounts /sys and the control groups as this process's namespaces have them.
mounts() {
  if is_version_2; then
    mount -t sysfs sysfs /sys
    mount -t cgroup2 cgroup2 "$groups"
    # Only a group without processes can limit those beneath it.
    join agents
    return
  fi
  folders=$(hierarchies)
  links=$(find "$groups" -maxdepth 1 -type l -printf '%f=%l\n')
  mount -t sysfs sysfs /sys
  mount -t tmpfs tmpfs "$groups"
  for folder in $folders; do
    name=${folder##*/}
    mkdir "$folder"
    case $name in
      systemd) mount -t cgroup -o none,name=systemd cgroup "$folder" ;;
      *) mount -t cgroup -o "$name" cgroup "$folder" ;;
    esac
  done
  for link in $links; do ln -s "${link#*=}" "$groups/${link%%=*}"; done
}

case $1 in
  first)
    # As Nomad does at the root of the host.
    if is_version_2; then
      for controller in cpuset cpu io memory pids; do
        echo "+$controller" >"$groups/cgroup.subtree_control" || true
      done
    fi
    join "$2"
    exec unshare --net --cgroup --mount --propagation private "$0" first-inside
    ;;
  first-inside)
    mounts
    ip link set lo up
    echo ready
    exec cat >/dev/null
    ;;
  in)
    pid=$2 directory=$4
    if is_version_2; then join "$3/agents"; else join "$3"; fi
    shift 4
    # shellcheck disable=SC2016 # the inner shell's
    exec nsenter --target "$pid" --net --cgroup --mount sh -c 'cd "$0" && exec "$@"' "$directory" "$@"
    ;;
esac
