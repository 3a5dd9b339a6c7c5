# A start that waits for its guest: the task runs only once the console has shown a text, so a deployment goes on to the
# next VM when this one can work, and not when its QEMU merely exists.
#
# Expect: an event such as `the guest is ready after 2.1 s: its console showed "steppe-guest: ready"`. With
# `-var text=never` the start fails after 8 s, is tried once more, and each failure says why, with the console's last lines.
#
# Needs: image_paths with the test guest (testing/guest). `make demo` provides it.
# Run:   nomad job run jobs/ready.nomad.hcl
# Stop:  nomad job stop ready

variable "text" {
  description = "What the console shows when the guest is ready."
  default     = "steppe-guest: ready"
}

job "ready" {
  group "vm" {
    # A guest that does not get ready is started again, and given up after that.
    restart {
      attempts = 1
      delay    = "1s"
      mode     = "fail"
    }

    reschedule {
      attempts  = 0
      unlimited = false
    }

    task "vm" {
      driver = "microvm"

      config {
        kernel  = "vmlinux"
        initrd  = "initrd.img"
        cmdline = "quiet"

        ready         = "console"
        ready_pattern = var.text
        ready_timeout = var.text == "never" ? "8s" : "60s"
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
