#!/usr/bin/env bash
# Builds the images of gateway and router, lists what is in them, and looks for known holes: CI's steps, for wherever
# Docker is. Needs docker with buildx, syft and trivy; --load (for a cluster on this machine) needs docker alone.
#
#   deploy/images/build.sh --load                            headrace-gateway:VERSION, headrace-router:VERSION, here
#   deploy/images/build.sh --push registry.example.org/headrace   pushes them, with SBOM and provenance
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }

step() {
  printf '\n== %s\n' "$*"
  "$@"
}

need() {
  command -v "$1" >/dev/null || { echo "$1 is missing: $2" >&2; exit 1; }
}

mode=${1:-}
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD)
# A layer's times are the commit's: the same commit gives the same image.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
out=build/images
mkdir -p "$out"
need docker "install Docker with buildx"

case $mode in
  --load) registry="" ;;
  --push)
    registry=${2:?the registry and folder to push to}
    need syft "https://github.com/anchore/syft"
    need trivy "https://github.com/aquasecurity/trivy"
    [ -z "$(git status --porcelain)" ] || { echo "uncommitted changes: an image is made of a commit" >&2; exit 1; }
    ;;
  *) usage ;;
esac

for process in gateway router; do
  build=(docker buildx build --file "deploy/images/$process/Dockerfile"
    --build-arg "VERSION=$version" --build-arg "REVISION=$revision")
  if [ "$mode" = --load ]; then
    step "${build[@]}" --load --tag "headrace-$process:$version" .
    continue
  fi
  archive="$out/$process.tar"
  # First as a file: what has a hole is never pushed.
  step "${build[@]}" --platform linux/amd64 --output "type=oci,dest=$archive,rewrite-timestamp=true" .
  step syft scan "oci-archive:$archive" --output "spdx-json=$out/$process.spdx.json"
  step trivy image --input "$archive" --exit-code 1 --severity HIGH,CRITICAL --ignore-unfixed
  step "${build[@]}" --platform linux/amd64 --sbom=true --provenance=mode=max --push \
    --metadata-file "$out/$process.json" --tag "$registry/$process:$version" .
  sed -n 's/.*"containerimage.digest": "\(sha256:[0-9a-f]*\)".*/'"$process"' \1/p' "$out/$process.json"
done
if [ "$mode" = --push ]; then
  echo "next: deploy/images/pin.sh, and commit what it wrote"
fi
