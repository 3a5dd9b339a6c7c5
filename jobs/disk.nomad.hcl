# A microVM with a disk of its own: /dev/vda is a file in the task's directory.
#
# The file is raw: its bytes are the disk's sectors. So a template can write a small one, here 64 KiB, text first and then
# blanks. A disk worth the name comes by an `artifact` block, or is made by a task before this one.
#
# Expect: within seconds the allocation is complete. Its console (`nomad alloc logs -job disk`) says that the guest found
# 'steppe-disk 41' in the first sector and wrote 'steppe-disk 42'; the file has it too:
# `nomad alloc fs -job disk vm/local/counter.raw | head -c 14`.
#
# Needs: image_paths with the test guest (testing/guest). `make demo` provides it.
# Run:   nomad job run -detach jobs/disk.nomad.hcl
# Stop:  it ends by itself; `nomad job stop -purge disk` forgets it.

job "disk" {
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

      template {
        destination = "local/counter.raw"
        data        = "{{ printf \"%-65536s\" \"steppe-disk 41\" }}"

        # Nothing may rewrite a disk that is in use.
        change_mode = "noop"
        once        = true
      }

      config {
        kernel  = "vmlinux"
        initrd  = "initrd.img"
        cmdline = "quiet steppe.disk steppe.poweroff"

        disk {
          name   = "counter"
          file   = "local/counter.raw"
          format = "raw"
        }
      }

      resources {
        cpu    = 200
        memory = 128
      }
    }
  }
}
