# A router in a microVM: one card that carries two VLANs with tags, and forwards between them.
#
# Expect: the console shows eth0 with the VLANs 100 and 200. The guest has 10.100.0.1 on the first and 10.200.0.1 on the second;
# machines there that use it as their gateway (vlan.nomad.hcl) reach each other through it.
#
# netd keeps a trunk's frames to its VLANs and to its hardware address; which IPv4 and IPv6 addresses it sends from is not
# looked at, because a router forwards what others sent. So give trunks to guests that may do that.
#
# Needs: image_paths with the test guest (testing/guest); hosts whose kernel filters VLANs on bridges, and netd with
#          [network.trunk]
#          kind = "vlan-aware"
#          uplink = "eth2"
#          vids = ["100", "200"]
# Run:   nomad job run jobs/router.nomad.hcl
# Stop:  nomad job stop router

job "router" {
  constraint {
    attribute = "${attr.driver.microvm.network.trunk}"
    value     = "vlan-aware"
  }

  update {
    min_healthy_time = "2s"
  }

  group "router" {
    task "vm" {
      driver = "microvm"

      config {
        kernel  = "vmlinux"
        initrd  = "initrd.img"
        cmdline = "quiet steppe.router steppe.address=eth0.100,10.100.0.1/16 steppe.address=eth0.200,10.200.0.1/16"

        network {
          name  = "trunk"
          trunk = ["100", "200"]
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
