# A service in a microVM: a guest that answers HTTP at a port which Nomad chose, registered and checked.
#
# Expect: the check passes within seconds; `curl` at the address of `nomad service info hello` says hello, with the
# guest's kernel and uptime, from other hosts, from the host itself and from 127.0.0.1 there; `nomad alloc logs -f -job hello`
# shows the console, one tick a second.
# Stopping presses the guest's power button: the last lines of the console are "powering off" and "bye".
#
# Needs: image_paths with the test guest (testing/guest), netd with its network "default". `make demo` provides both.
# Run:   nomad job run jobs/hello.nomad.hcl
# Stop:  nomad job stop hello

job "hello" {
  type = "service"

  # `nomad job run` waits until the guest was healthy this long; Nomad's default is 10s.
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
      name     = "hello"
      provider = "nomad"
      port     = "http"

      check {
        type     = "http"
        path     = "/"
        interval = "2s"
        timeout  = "1s"
      }
    }

    task "vm" {
      driver = "microvm"

      # So long may the guest take to shut down.
      kill_timeout = "10s"

      config {
        kernel  = "vmlinux"
        initrd  = "initrd.img"
        cmdline = "quiet steppe.httpd steppe.ticks"

        # Behind the host's address: the guest reaches out, and the port leads in.
        network {
          name  = "default"
          ports = ["http"]
        }
      }

      resources {
        cpu    = 200
        memory = 128
      }
    }
  }
}
