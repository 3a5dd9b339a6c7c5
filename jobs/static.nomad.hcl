# Two microVMs at addresses that the job names: they are machines of their own on the operator's network.
#
# Expect: `nomad service info static` lists 10.1.0.10:80 and 10.1.0.11:80, and every machine on that network gets the guests'
# page there. The addresses, MAC and IPv6 too, are the same after every restart and on every host. The services go before
# the guests are asked to power off.
#
# Needs: image_paths with the test guest (testing/guest); netd with a network "lan" that has 10.1.0.0/16, such as
#          [network.lan]
#          kind = "bridge"
#          bridge = "br0"
#          ipv4 = { subnet = "10.1.0.0/16", gateway = "10.1.0.1" }
# Run:   nomad job run jobs/static.nomad.hcl
# Stop:  nomad job stop static

job "static" {
  # Only hosts that can give it: `nomad job plan` says so where there is none.
  constraint {
    attribute = "${attr.driver.microvm.network.lan}"
    operator  = "is_set"
  }

  update {
    min_healthy_time = "2s"
  }

  group "web" {
    count = 2

    task "vm" {
      driver = "microvm"

      # A task's service may have the guest's own address, and a port of the guest's; a group's has always the host's.
      service {
        name         = "static"
        provider     = "nomad"
        address_mode = "driver"
        port         = "80"
      }

      config {
        kernel  = "vmlinux"
        initrd  = "initrd.img"
        cmdline = "quiet steppe.httpd"

        network {
          name = "lan"

          # The allocation's index is added. Without this line netd looks for a free address that stays the same.
          ipv4 = "10.1.0.10+index"
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
