# A microVM with two network cards: one behind the host's address, with a port, one on the operator's network.
#
# Expect: the console (`nomad alloc logs -job two-nics`) shows eth0 and eth1 with their addresses, which the guest has from
# /etc/steppe/network; the page answers at the host's port (`nomad service info two-nics`) and, on the network "lan", at the
# address of eth1. Its default route is the first card's.
#
# Needs: image_paths with the test guest (testing/guest); netd with the networks "default" and "lan" (static.nomad.hcl).
# Run:   nomad job run jobs/two-nics.nomad.hcl
# Stop:  nomad job stop two-nics

job "two-nics" {
  constraint {
    attribute = "${attr.driver.microvm.network.lan}"
    operator  = "is_set"
  }

  update {
    min_healthy_time = "2s"
  }

  group "web" {
    network {
      port "http" {
        to = 80
      }
    }

    service {
      name     = "two-nics"
      provider = "nomad"
      port     = "http"
    }

    task "vm" {
      driver = "microvm"

      config {
        kernel  = "vmlinux"
        initrd  = "initrd.img"
        cmdline = "quiet steppe.httpd"

        network {
          name  = "default"
          ports = ["http"]
        }

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
