# A new version beside the old one: a canary that has addresses of its own.
#
# Nomad gives a canary the index of the allocation that it may replace. With the identity of the job, which is the default, both
# would have the same addresses, and the canary would be refused while the other lives. `identity = "alloc"` makes them the
# allocation's own; they last as long as it does.
#
# Expect: after `-var version=2` two allocations run, and their consoles show different addresses; after `nomad job promote
# canary` only the new one.
#
# Needs: image_paths with the test guest (testing/guest); netd with a network "lan" (static.nomad.hcl).
# Run:   nomad job run -detach jobs/canary.nomad.hcl; then the same with -var version=2; then nomad job promote canary
# Stop:  nomad job stop canary

variable "version" {
  type        = number
  default     = 1
  description = "what the guest is told; another number is another version of the job"
}

job "canary" {
  constraint {
    attribute = "${attr.driver.microvm.network.lan}"
    operator  = "is_set"
  }

  group "web" {
    update {
      canary           = 1
      min_healthy_time = "2s"
    }

    task "vm" {
      driver = "microvm"

      config {
        kernel   = "vmlinux"
        initrd   = "initrd.img"
        cmdline  = "quiet steppe.httpd version=${var.version}"
        identity = "alloc"

        network {
          name = "lan"
        }
      }

      # Longer than the guest takes to shut down.
      kill_timeout = "20s"

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
