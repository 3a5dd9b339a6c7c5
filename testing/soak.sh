#!/usr/bin/env bash
# `make soak`: the long versions of what `make test` does in short. Started by testing/prepare.sh.
#
#   STEPPE_SEED=N    repeats a run: every random choice follows from it. Without it one is drawn, and printed.
#   STEPPE_CASES=N   how many cases each property gets (default 100000)
#   STEPPE_OPERATIONS=N   how many random operations (default 1000)
set -euo pipefail
cd "$(dirname "$0")/.."
: "${STEPPE_NOMAD:?testing/prepare.sh sets it: run make soak}"

STEPPE_SEED=${STEPPE_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
export STEPPE_SEED
echo "seed $STEPPE_SEED (STEPPE_SEED=$STEPPE_SEED make soak repeats this run)"

# proptest takes both from the environment.
echo "properties and fuzzing of the pure crates"
PROPTEST_RNG_SEED=$STEPPE_SEED PROPTEST_CASES=${STEPPE_CASES:-100000} \
    cargo test --quiet --locked --release --package steppe-image --package steppe-vm --package steppe-qemu

# Not optimized: an overflow is then a panic.
echo "a minute of bad input for each reader"
STEPPE_FUZZ_SECONDS=60 cargo test --quiet --locked --package steppe-fuzz -- --nocapture

echo "200 starts and stops, 20 at a time"
STEPPE_CYCLES=200 STEPPE_PARALLEL=20 cargo run --quiet --locked --package steppe-e2e -- e2e_cycles

echo "${STEPPE_OPERATIONS:=1000} random starts, stops and kills, beside a model of what must be"
export STEPPE_OPERATIONS
testing/nomad/test.sh -test.run '^TestSoakRandom$'

echo "$((STEPPE_OPERATIONS * 10)) random requests, changes and kills of netd"
STEPPE_OPERATIONS=$((STEPPE_OPERATIONS * 10)) cargo run --quiet --locked --package steppe-netd-checks -- netd_random
