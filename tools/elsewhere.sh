#!/usr/bin/env bash
# The fast tests, in random order, where much is unusual at once: a path with a space and umlauts, the C locale, two
# threads, no HOME, a checkout that cannot be written, and, when root runs this, another user.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(mktemp -d)
trap 'chmod -R u+w "$folder" && rm -rf "$folder"' EXIT
place="$folder/Zum Überprüfen"
as_nobody=()
if [ "$(id -u)" = 0 ]; then
    as_nobody=(setpriv --reuid=65534 --regid=65534 --clear-groups)
    PATH="/usr/bin:$PATH" # the system's Python: root's own may lie where no other user may look
fi
git clone --quiet . "$place"
make --no-print-directory -C "$place" .venv/.ready
chmod -R a+rX,a-w "$folder"
cd "$place"
env -u HOME LC_ALL=C OMP_NUM_THREADS=2 "${as_nobody[@]}" .venv/bin/pytest tests -m "not book and not slow" \
    -n auto -p no:cacheprovider --random-order --random-order-seed="${SEED:-$RANDOM}"
