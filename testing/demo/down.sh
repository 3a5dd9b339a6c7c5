#!/usr/bin/env bash
# `make demo-stop`: stops the demo's jobs, then Nomad, and leaves the host as it was before `make demo`.
set -euo pipefail
cd "$(dirname "$0")/../.."
PROGRAM="make demo-stop"
AGENTS=${STEPPE_DEMO_DIR:-/var/lib/steppe-demo}
. testing/demo/lib.sh
become_root testing/demo/down.sh

if [ ! -d "$AGENTS" ]; then
    echo "There is no demo in $AGENTS."
    exit
fi
agents_remove
say "the demo is gone"
