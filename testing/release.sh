#!/bin/sh
# Which folder holds the plugin and the shim of an earlier release? Prints it; builds them first where they are missing,
# from the commit given (testing/releases.txt lists those that matter). Progress on stderr.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
cache=${STEPPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/steppe}

say() { printf 'release: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

commit=${1-}
case $commit in
    *[!0-9a-f]*) die "$commit is no commit's full hash" ;;
    ????????????????????????????????????????) ;;
    *) die 'which commit? Its full hash is the one argument' ;;
esac
for tool in git tar cargo flock; do
    command -v "$tool" >/dev/null || die "an earlier release can't be built without $tool; run \`make setup\`"
done
out=$cache/release-$commit
mkdir -p "$cache"

# Two builds at once: the second waits and finds the first one's result.
exec 9>"$cache/release.lock"
flock -n 9 || { say 'another build runs; waiting for it' && flock 9; }
if [ -d "$out" ]; then
    printf '%s\n' "$out"
    exit 0
fi

# The tree may be another user's than the one who tests, who is root.
from_tree() { git -c safe.directory="$root" -C "$root" "$@"; }
there() { from_tree cat-file -e "$commit^{commit}" 2>/dev/null; }
if ! there; then
    say "commit $commit is not in this clone; fetching it"
    from_tree fetch --quiet --depth 1 origin "$commit" >&2 9>&- || true
    there || die "commit $commit of testing/releases.txt is not in $root and can't be fetched from its origin: fetch the" \
        'whole history (git fetch --unshallow), or test in a clone that has it'
fi

# Under the lock, so these belong to builds that were killed.
rm -rf "$cache"/release-tmp.*
work=$(mktemp -d "$cache/release-tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

say "building the release of commit $commit; takes some minutes, once"
mkdir "$work/tree"
from_tree archive --format=tar -o "$work/tree.tar" "$commit" || die "git can't unpack commit $commit"
tar -x -f "$work/tree.tar" -C "$work/tree"
# Its own script, its own toolchain (a cargo that started us would pass on ours), nothing of today's build.
(unset RUSTUP_TOOLCHAIN && CARGO_TARGET_DIR=$work/target "$work/tree/testing/build.sh") >&2 9>&- ||
    die "the release of commit $commit can't be built; the lines above say why"
chmod 755 "$work/target/plugins"
mv -T "$work/target/plugins" "$out"
say "built $out"
printf '%s\n' "$out"
