#!/usr/bin/env bash
# The picture in the README:  docs/screenshot.sh results/report/digits/index.html [PICTURE]
set -euo pipefail

fail() { printf 'error: %s\n    -> %s\n' "$1" "$2" >&2; exit 1; }

[ $# -ge 1 ] || fail "no page named" "docs/screenshot.sh results/report/digits/index.html"
[ -f "$1" ] || fail "$1: no such file" "snakemake makes it"
page=$(realpath "$1")
picture=$(realpath "${2:-$(dirname "$0")/report.png}")
browser=$(command -v chromium chromium-browser google-chrome chrome | head -n 1) || true
[ -n "$browser" ] || fail "no Chromium or Chrome" "install one (Debian: apt install chromium)"

profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
options=(--headless --hide-scrollbars --window-size=1100,1000 --virtual-time-budget=5000 "--user-data-dir=$profile")
[ "$(id -u)" -ne 0 ] || options+=(--no-sandbox) # Chromium refuses root otherwise
address=$(python3 -c 'import pathlib, sys; print(pathlib.Path(sys.argv[1]).as_uri())' "$page")
"$browser" "${options[@]}" "--screenshot=$picture" "$address" 2> "$profile/log" || { cat "$profile/log" >&2; exit 1; }
echo "$picture"
