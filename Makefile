# What can be done with this tree; every target is one script or one cargo command. `make help` lists them.

PREFIX ?= /usr/local
# Where Nomad looks for plugins: by default the folder `plugins` of its data_dir, which its packages set so.
PLUGIN_DIR ?= /opt/nomad/data/plugins
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
	@echo '  CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)  what cargo builds; the two programs go to its folder plugins'
	@echo "  STEPPE_CACHE=$${STEPPE_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/steppe}  Nomad and the test guest, built once"
	@echo '  CHECKS=$(CHECKS)  arguments of the check runner, for example CHECKS="--only cargo,tidy"'
	@echo '  PREFIX=$(PREFIX)  PLUGIN_DIR=$(PLUGIN_DIR)  DESTDIR=$(DESTDIR)  where install and uninstall work'

setup: ## install the Debian packages of testing/packages.txt that are missing (as root or through sudo)
	@testing/setup.sh

build: ## build the plugin and the shim, optimized
	@testing/build.sh

demo: setup ## a Nomad agent that runs a VM, from nothing
	@testing/prepare.sh testing/demo/up.sh

demo-stop: ## end the demo and leave the host as it was
	@testing/demo/down.sh

test: setup ## run every check; results in target/checks.json, logs in target/logs
	@testing/prepare.sh cargo run --quiet --locked --package steppe-checks -- $(CHECKS)

bench: setup ## measure the promised figures against Nomad's qemu driver; results in target/bench.json
	@testing/prepare.sh testing/bench/run.sh

soak: setup ## the long versions of the random and the repeated tests
	@testing/prepare.sh testing/soak.sh

clean-host: ## remove what interrupted tests left on this machine
	@testing/clean-host.sh

install: ## install the programs to PLUGIN_DIR and the example configuration; after `make build`, as root
	@test -x '$(BUILT)/nomad-driver-microvm' -a -x '$(BUILT)/microvm-shim' || { \
		echo 'make install: run `make build` first' >&2; exit 1; }
	install -d '$(DESTDIR)$(PLUGIN_DIR)' '$(DESTDIR)$(DOC_DIR)'
	install -m 0755 '$(BUILT)/nomad-driver-microvm' '$(BUILT)/microvm-shim' '$(DESTDIR)$(PLUGIN_DIR)'
	install -m 0644 dist/client.hcl '$(DESTDIR)$(DOC_DIR)'
	@echo 'Next: put $(DOC_DIR)/client.hcl, adapted, into the configuration of Nomad'\''s client, and restart Nomad.'

uninstall: ## remove what install installed; refuses while a VM lives
	@DESTDIR='$(DESTDIR)' PLUGIN_DIR='$(PLUGIN_DIR)' DOC_DIR='$(DOC_DIR)' dist/uninstall.sh
