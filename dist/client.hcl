# A Nomad client with the microvm driver. Shown are all options with their defaults, unless said otherwise.
#
# The unit of Nomad needs KillMode=process, as in HashiCorp's packages: otherwise systemd ends every virtual machine
# when it restarts Nomad.

client {
  enabled = true

  # A job's kill_timeout is cut down to this. A guest needs some seconds to shut down; Nomad's default is 30s.
  max_kill_timeout = "2m"
}

# Without this Nomad never asks for the CPU and memory of the virtual machines: `nomad alloc status -stats` and the charts of
# the UI stay empty. Nomad's default is false.
telemetry {
  publish_allocation_metrics = true
}

plugin "nomad-driver-microvm" {
  config {
    # Offer the driver on this node.
    enabled = true

    # The record of each task, exit records, logs of plugin and shims; one per agent. Must survive a restart.
    state_dir = "/var/lib/steppe/driver"

    # Sockets. May be lost at a reboot.
    run_dir = "/run/steppe"

    # Absolute folders in which the name of a kernel or initrd is looked up that does not begin with local/ or alloc/.
    image_paths = []

    # Allow network { name = "user" }: QEMU's user-mode network, inbound ports only.
    user_network = false

    # The socket of netd on this host, "/run/netd/netd.sock" where its unit is installed: jobs may name its networks. Empty: no netd,
    # and no network but "user".
    netd = ""

    # QEMU, a name in PATH or an absolute path.
    qemu = "qemu-system-x86_64"

    # The shim; empty means beside the plugin.
    shim = ""

    # Further absolute files and folders that QEMU's process may read and execute, for a QEMU in an unusual place. Of the host's
    # files it sees its program, libraries and firmware, and nothing else.
    qemu_paths = []

    # required: no virtual machine where the kernel lacks namespaces, Landlock or seccomp. best: as far as the kernel can; node
    # attribute driver.microvm.hardening says what is missing, and so does an event of each task.
    hardening = "required"

    # auto, kvm or tcg. auto takes KVM where it proves to work, else TCG.
    accelerator = "auto"

    # Each virtual machine runs as a user of its own from this range, which must belong to nobody else.
    vm_uids = "1900000000-1900065535"

    # The agent's client { users { dynamic_user_min, dynamic_user_max } }: where Nomad leases a user to a task, QEMU runs as that.
    workload_uids = "80000-89999"

    # A VM that no agent asks about any more is reported (node attribute driver.microvm.orphans), and after this time, counted
    # while an agent is connected, it is stopped and removed.
    orphan_grace = "1h"

    # Of the plugin's own log: error, warn, info, debug or trace.
    log_level = "info"
  }
}
