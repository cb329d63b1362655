#!/bin/sh
# Copies one revision of the model repository from the share and checks every file against its list, before Triton starts.
#
# A copy, not the share itself: what Triton has loaded must not change beneath it, nor hang when the server is away.
set -eu

target=/models
from="/store/$REVISION"

[ -s "$from/SHA256SUMS" ] || { echo "no SHA256SUMS in $from" >&2; exit 1; }
# What a container that was restarted had left half done.
find "$target" -mindepth 1 -delete
cp -R "$from/." "$target/"
cd "$target"
sha256sum -c SHA256SUMS >/dev/null
listed=$(sed 's/^[0-9a-f]*[ *]*//; s,^\./,,' SHA256SUMS | sort)
found=$(find . -type f ! -path ./SHA256SUMS | sed 's,^\./,,' | sort)
[ "$listed" = "$found" ] || { echo "files that SHA256SUMS does not list in $from" >&2; exit 1; }
echo "$from: $(wc -l < SHA256SUMS) files are as listed"
