# shellcheck shell=sh
# Which flags does every Go build here use? One set: flags are part of the key of Go's build cache, and a second set
# would compile Nomad twice. Sourced by build.sh and test.sh.
# `ui` brings the web interface, `hashicorpmetrics` and `codegen_generated` are what Nomad's own build uses; never
# `release`, which leaves out the test helpers. readonly: go.mod and go.sum say what is built, exactly.
export GOFLAGS='-buildvcs=false -mod=readonly -trimpath -tags=ui,hashicorpmetrics,codegen_generated'
export GOWORK=off
