#!/usr/bin/env bash
# The shortest tour: a server, a worker, one real file there and back. `make demo` runs it.
# Everything lives in a temporary directory and is gone at the end.
set -euo pipefail

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
show() { printf '  $ %s\n' "$*"; }
fail() { printf '\nThe demo failed: %s\n' "$*" >&2; exit 1; }

# The demo talks to its own server only, whatever this shell is set up for.
unset "${!NATS_@}" "${!NATSBLOB_@}"
export NATSBLOB_CONFIG=/dev/null

work=$(mktemp -d "${TMPDIR:-/tmp}/natsblob-demo.XXXXXX")
server_pid=
tidy() {
    if [[ -n "$server_pid" ]]; then
        kill -TERM "$server_pid" 2>/dev/null || true
        wait "$server_pid" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap tidy EXIT
cd "$work"

say "1. Start a nats-server with JetStream on disk, and one natsblob worker on it"
show "natsblob serve --embedded --store-dir $work/store --port 0"
mkfifo ready
natsblob serve --embedded --store-dir "$work/store" --port 0 >ready 2>serve.log &
server_pid=$!
exec 3<ready
read -r -t 60 line <&3 || { cat serve.log >&2; fail "the service did not become ready"; }
echo "  $line"
url=${line#*url=}
url=${url%% *}

say "2. Make a file of 5 MiB of random bytes"
head -c $((5 * 1024 * 1024)) /dev/urandom >photo.raw
show "sha256sum photo.raw"
expected=$(sha256sum photo.raw | cut -d' ' -f1)
echo "  $expected"

say "3. Put it. The answer is its address: the SHA-256 of the bytes"
show "natsblob put photo.raw --server $url"
digest=$(natsblob put photo.raw --server "$url")
echo "  $digest"

say "4. Ask what is known of it"
show "natsblob stat $digest"
natsblob stat "$digest" --server "$url" | sed 's/^/  /'

say "5. Get it back by its address, verified on the way"
show "natsblob get $digest -o copy.raw"
natsblob get "$digest" -o copy.raw --server "$url"

say "6. Compare"
actual=$(sha256sum copy.raw | cut -d' ' -f1)
echo "  put  $expected"
echo "  got  $actual"
[[ "$digest" == "$expected" ]] || fail "the address is not the SHA-256 of the file"
[[ "$actual" == "$expected" ]] || fail "the copy differs from the file"
echo "  identical"

say "7. Stop the service; it finishes what it is doing first"
kill -TERM "$server_pid"
wait "$server_pid" || fail "the service did not stop cleanly"
server_pid=

say "Done. Next: natsblob --help, or README.md for a tour of five minutes."
