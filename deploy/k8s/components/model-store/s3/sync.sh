#!/bin/sh
# Fetches one revision of the model repository and checks every file against its list, before Triton starts.
#
# The revision's SHA256SUMS is what `sha256sum` writes over all its files, made where the models are made. A file that
# differs, is missing, or is in no list ends this with a failure: the pod does not start, and the old ones go on.
set -eu

target=/models
from="$SOURCE/$REVISION"

# --checksum: by content, never by time. `sync` also takes away what a container that was restarted had left half done.
rclone --config /etc/headrace/model-store/rclone.conf sync --checksum --retries 5 --transfers 4 "$from" "$target"

cd "$target"
[ -s SHA256SUMS ] || { echo "no SHA256SUMS in $from" >&2; exit 1; }
sha256sum -c SHA256SUMS >/dev/null
listed=$(sed 's/^[0-9a-f]*[ *]*//; s,^\./,,' SHA256SUMS | sort)
found=$(find . -type f ! -path ./SHA256SUMS | sed 's,^\./,,' | sort)
[ "$listed" = "$found" ] || { echo "files that SHA256SUMS does not list in $from" >&2; exit 1; }
# Triton takes every folder for a model, and files are none: the list may stay.
echo "$from: $(wc -l < SHA256SUMS) files are as listed"
