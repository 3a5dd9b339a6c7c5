# What can be done with this tree; every target is one script or one cargo command. `make help` lists them.

PREFIX ?= /usr/local
# Where Nomad looks for plugins: by default the folder `plugins` of its data_dir, which its packages set so.
PLUGIN_DIR ?= /opt/nomad/data/plugins
# Where netd, its unit and the files for udev, systemd-networkd and NetworkManager go. systemd looks in these folders.
SBIN_DIR ?= $(PREFIX)/sbin
UNIT_DIR ?= $(PREFIX)/lib/systemd/system
NETWORK_DIR ?= $(PREFIX)/lib/systemd/network
NETWORKMANAGER_DIR ?= /etc/NetworkManager/conf.d
CONFIG_DIR ?= /etc/netd
DESTDIR ?=
CARGO_TARGET_DIR ?= $(CURDIR)/target
CHECKS ?=

export CARGO_TARGET_DIR

BUILT := $(CARGO_TARGET_DIR)/plugins
DOC_DIR := $(PREFIX)/share/doc/steppe

.PHONY: help setup build demo demo-stop test bench soak clean-host install uninstall

help: ## print this text
	@echo 'make TARGET [VARIABLE=value]...'
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '  %-12s %s\n' "$$target" "$$text"; done
	@echo
	@echo 'Variables, with their present values:'
	@echo '  CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)  what cargo builds; the programs go to its folder plugins'
	@echo "  STEPPE_CACHE=$${STEPPE_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/steppe}  Nomad and the test guest, built once"
	@echo '  CHECKS=$(CHECKS)  arguments of the check runner, for example CHECKS="--only cargo,tidy"'
	@echo '  PREFIX=$(PREFIX)  PLUGIN_DIR=$(PLUGIN_DIR)  SBIN_DIR=$(SBIN_DIR)  UNIT_DIR=$(UNIT_DIR)'
	@echo '  NETWORK_DIR=$(NETWORK_DIR)  NETWORKMANAGER_DIR=$(NETWORKMANAGER_DIR)  CONFIG_DIR=$(CONFIG_DIR)'
	@echo '  DESTDIR=$(DESTDIR)  where install and uninstall work'

setup: ## install the Debian packages of testing/packages.txt that are missing (as root or through sudo)
	@testing/setup.sh

build: ## build the plugin, the shim and netd, optimized
	@testing/build.sh

demo: setup ## a Nomad agent that runs a VM, from nothing
	@testing/prepare.sh testing/demo/up.sh

demo-stop: ## end the demo and leave the host as it was
	@testing/demo/down.sh

test: setup ## run every check; results in target/checks.json, logs in target/logs
	@testing/prepare.sh cargo run --quiet --locked --package steppe-checks -- $(CHECKS)

bench: setup ## measure the promised figures against Nomad's qemu driver and CNI's plugin; results in target/bench.json
	@testing/prepare.sh testing/bench/run.sh

soak: setup ## the long versions of the random and the repeated tests
	@testing/prepare.sh testing/soak.sh

clean-host: ## remove what interrupted tests left on this machine
	@testing/clean-host.sh

install: ## install the programs, netd's unit and the example configurations; after `make build`, as root
	@for program in nomad-driver-microvm microvm-shim netd; do \
		test -x '$(BUILT)'/$$program || { echo 'make install: run `make build` first' >&2; exit 1; }; done
	install -d '$(DESTDIR)$(PLUGIN_DIR)' '$(DESTDIR)$(DOC_DIR)' '$(DESTDIR)$(SBIN_DIR)' '$(DESTDIR)$(UNIT_DIR)' \
		'$(DESTDIR)$(NETWORK_DIR)' '$(DESTDIR)$(NETWORKMANAGER_DIR)' '$(DESTDIR)$(CONFIG_DIR)'
	install -m 0755 '$(BUILT)/nomad-driver-microvm' '$(BUILT)/microvm-shim' '$(DESTDIR)$(PLUGIN_DIR)'
	install -m 0755 '$(BUILT)/netd' '$(DESTDIR)$(SBIN_DIR)'
	install -m 0644 dist/client.hcl dist/netd.toml '$(DESTDIR)$(DOC_DIR)'
	sed -e 's|/usr/local/sbin|$(SBIN_DIR)|' -e 's|/usr/local/share/doc/steppe|$(DOC_DIR)|' dist/netd.service \
		>'$(DESTDIR)$(UNIT_DIR)/netd.service'
	chmod 0644 '$(DESTDIR)$(UNIT_DIR)/netd.service'
	install -m 0644 dist/05-netd.link dist/05-netd.network '$(DESTDIR)$(NETWORK_DIR)'
	install -m 0644 dist/netd-networkmanager.conf '$(DESTDIR)$(NETWORKMANAGER_DIR)/netd.conf'
	test -e '$(DESTDIR)$(CONFIG_DIR)/netd.toml' || install -m 0644 dist/netd.toml '$(DESTDIR)$(CONFIG_DIR)'
	@echo 'Next: systemctl daemon-reload && systemctl enable --now netd; networks stand in $(CONFIG_DIR)/netd.toml.'
	@echo 'Put $(DOC_DIR)/client.hcl, adapted, into the configuration of Nomad'\''s client, and restart Nomad.'

uninstall: ## remove what install installed; refuses while a VM lives
	@DESTDIR='$(DESTDIR)' PLUGIN_DIR='$(PLUGIN_DIR)' DOC_DIR='$(DOC_DIR)' SBIN_DIR='$(SBIN_DIR)' UNIT_DIR='$(UNIT_DIR)' \
		NETWORK_DIR='$(NETWORK_DIR)' NETWORKMANAGER_DIR='$(NETWORKMANAGER_DIR)' CONFIG_DIR='$(CONFIG_DIR)' \
		dist/uninstall.sh
