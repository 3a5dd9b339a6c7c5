#!/usr/bin/env bash
# `make demo`: a Nomad server and client, with the driver, that run jobs/hello.nomad.hcl. Started by testing/prepare.sh,
# which says where the programs are. Everything is in ${STEPPE_DEMO_DIR:-/var/lib/steppe-demo}; `make demo-stop` removes it.
# What is there already is used: a second run says the same again, and one that was interrupted is taken up.
set -euo pipefail
cd "$(dirname "$0")/../.."
PROGRAM="make demo"
AGENTS=${STEPPE_DEMO_DIR:-/var/lib/steppe-demo}
. testing/demo/lib.sh
: "${STEPPE_NOMAD:?testing/prepare.sh sets it: run make demo}" "${STEPPE_PLUGIN_DIR:?}" "${STEPPE_GUEST_DIR:?}"
become_root testing/demo/up.sh

# The network that netd brings along.
AGENTS_NETWORKS=
agents_start "${STEPPE_DEMO_PORT:-4646}" 1910000000
say "Nomad lists the driver: microvm, healthy"

nomad job run -detach jobs/hello.nomad.hcl >/dev/null || fail "Nomad does not take jobs/hello.nomad.hcl"
say "job hello is submitted; waiting for its guest"

status=
guest_answers() {
    address=$(service_address hello)
    [ -n "$address" ] && status=$(get "http://$address/cgi-bin/status")
}
deadline=$((SECONDS + ${STEPPE_DEMO_SECONDS:-120}))
until guest_answers; do
    if ((SECONDS >= deadline)) || allocation_is hello failed; then
        why_not hello >&2 || true
        fail "the guest of job hello does not answer; Nomad's events above say why"
    fi
    sleep 0.3
done
release=$(sed -n 's/.*"release":"\([^"]*\)".*/\1/p' <<<"$status")
uptime=$(sed -n 's/.*"uptime":\([0-9.]*\).*/\1/p' <<<"$status")
[ -n "$release" ] && [ -n "$uptime" ] || fail "http://$address/cgi-bin/status answers something else: $status"
say "the guest answers"

cat <<END

A microVM answers at http://$address, the address that Nomad registered:

  kernel $release, up $uptime s

What you can do now:

  see it in a browser      $ADDRESS/ui/jobs/hello
  ask the guest again      curl http://$address/

  export NOMAD_ADDR=$ADDRESS
  follow its console       $AGENTS/bin/nomad alloc logs -f -job hello
  run another job          $AGENTS/bin/nomad job run -detach jobs/batch.nomad.hcl
  see its network card     $AGENTS/bin/netd list --socket $AGENTS/netd.sock
  press its power button   $AGENTS/bin/nomad job stop hello

  end everything           make demo-stop
END
