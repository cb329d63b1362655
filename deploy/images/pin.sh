#!/usr/bin/env bash
# Writes the digest of every image that the overlays and our own Dockerfile name by version: what was looked at is what
# is run, whatever its tag points to later. Needs docker with buildx, and the way to the registries.
#
#   deploy/images/pin.sh            all of them
#   deploy/images/pin.sh --base     all but ours, which are built on one of them and pushed nowhere yet
#   deploy/images/pin.sh --check    fails where a digest is none, and asks nobody
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

list=deploy/k8s/overlays/images/kustomization.yaml
dockerfile=deploy/images/Dockerfile
none=sha256:0000000000000000000000000000000000000000000000000000000000000000

if [ "${1:-}" = --check ]; then
  if grep -n "$none" "$list" "$dockerfile"; then
    echo "these have no digest yet: deploy/images/pin.sh" >&2
    exit 1
  fi
  exit 0
fi

digest() {
  docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}'
}

# Four lines belong to each image: name, newName, newTag, digest.
new=$(mktemp)
trap 'rm -f "$new"' EXIT
ours="" name="" tag=""
while IFS= read -r line; do
  case $line in
    *"- name: headrace-"*) ours=yes ;;
    *"- name: "*) ours="" ;;
    *newName:*) name=${line##*: } ;;
    *newTag:*) tag=${line##*: } ;;
    *digest:*)
      if [ -z "$ours" ] || [ "${1:-}" != --base ]; then line="    digest: $(digest "$name:$tag")"; echo "$name:$tag ${line##*: }" >&2; fi
      ;;
  esac
  printf '%s\n' "$line"
done < "$list" > "$new"
cat "$new" > "$list"

base=$(sed -n 's/^ARG BASE=\([^@]*\)@.*/\1/p' "$dockerfile")
# By itself: within another command a failure would be written down as a digest.
pinned=$(digest "$base")
sed -i "s|^ARG BASE=.*|ARG BASE=$base@$pinned|" "$dockerfile"
