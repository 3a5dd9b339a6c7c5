# A tenant's microVMs on their own VLAN: wherever they run, they reach each other, and nobody else reaches them.
#
# Expect: each console shows the guest's address, and an answer of 10.100.0.1, the VLAN's router; of two allocations on
# different hosts each reaches the other at that address. Machines on other VLANs see no frame of theirs.
#
# Needs: image_paths with the test guest (testing/guest); hosts whose kernel has 802.1Q, and netd with
#          [network.tenant-a]
#          kind = "vlan"
#          uplink = "eth1"
#          vid = 100
#          ipv4 = { subnet = "10.100.0.0/16", gateway = "10.100.0.1" }
#          ipv6 = { prefix = "fd00:100::/64" }
# Run:   nomad job run jobs/vlan.nomad.hcl
# Stop:  nomad job stop vlan

job "vlan" {
  # Only hosts that can give it: `nomad job plan` says so where there is none.
  constraint {
    attribute = "${attr.driver.microvm.network.tenant-a}"
    value     = "vlan"
  }

  update {
    min_healthy_time = "2s"
  }

  group "tenant" {
    count = 2

    # On different hosts, as far as there are some.
    spread {
      attribute = "${node.unique.id}"
    }

    task "vm" {
      driver = "microvm"

      config {
        kernel  = "vmlinux"
        initrd  = "initrd.img"
        cmdline = "quiet steppe.ping=10.100.0.1"

        network {
          name = "tenant-a"
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
