#!/bin/sh
# Is the tree formatted, and free of lints? Prints one `check` line for each.
set -u
cd "$(dirname "$0")/../.."

check() { # name command...
    name=$1
    shift
    start=$(date +%s)
    if "$@"; then result=passed; else result=failed; fi
    echo "check $name $result $(($(date +%s) - start))"
}

check tidy_fmt cargo fmt --all -- --check
check tidy_clippy cargo clippy --workspace --all-targets --locked -- -D warnings
