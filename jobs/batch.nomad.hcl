# A batch job in a microVM: the guest's program ends with an exit code, and the task has the same.
#
# Expect: within seconds the allocation has failed with `Exit Code: 7` in `nomad alloc status`, and is neither restarted
# nor rescheduled. With exit_code=0 it is complete. `nomad alloc logs -job batch` ends with "steppe-guest: exit 7".
#
# Needs: image_paths with the test guest (testing/guest). `make demo` provides it.
# Run:   nomad job run -detach jobs/batch.nomad.hcl       (or with -var exit_code=0)
# Stop:  it ends by itself; `nomad job stop -purge batch` forgets it.

variable "exit_code" {
  type        = number
  default     = 7
  description = "what the guest's program ends with, 0 to 127"
}

job "batch" {
  type = "batch"

  group "once" {
    restart {
      attempts = 0
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
        cmdline = "quiet steppe.exit=${var.exit_code}"
      }

      resources {
        cpu    = 200
        memory = 128
      }
    }
  }
}
