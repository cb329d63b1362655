#!/usr/bin/env bash
# Builds the images of gateway and router, lists what is in them, and looks for known holes: CI's steps, for wherever
# Docker is. Needs docker with buildx; --check and --push need syft and trivy too (README.md has the versions).
#
#   deploy/images/build.sh --load     headrace-gateway:VERSION and headrace-router:VERSION, for a cluster on this machine
#   deploy/images/build.sh --check    both as files in build/images, listed and scanned; nothing leaves this machine
#   deploy/images/build.sh --push registry.example.org/headrace   the same of a commit, and pushes these very files
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

usage() { sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }

step() {
  printf '\n== %s\n' "$*"
  "$@"
}

stop() { echo "$*" >&2; exit 1; }

need() {
  command -v "$1" >/dev/null || stop "$1 is missing: $2"
}

mode=${1:-}
dockerfile=deploy/images/Dockerfile
base=$(sed -n 's/^ARG BASE=//p' "$dockerfile")
# Zeros are no digest, and nothing can be pulled by them.
tag=""
if [[ $base =~ @sha256:0{64}$ ]]; then tag=${base%@*}; fi
case $mode in
  --load | --check) ;;
  --push)
    registry=${2:?the registry and folder to push to}
    [ -z "$tag" ] || stop "the base has no digest: deploy/images/pin.sh --base, and commit what it wrote"
    [ -z "$(git status --porcelain)" ] || stop "uncommitted changes: an image is made of a commit"
    ;;
  *) usage ;;
esac
need docker "install Docker with buildx"

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml)
# A layer's times are the commit's: the same commit gives the same image.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
build=(docker buildx build --file "$dockerfile"
  --build-arg "VERSION=$version" --build-arg "REVISION=$(git rev-parse HEAD)")
if [ -n "$tag" ]; then
  echo "the base has no digest yet, so it is $tag as the registry has it today (deploy/images/pin.sh --base pins it)" >&2
  build+=(--build-arg "BASE=$tag")
fi

if [ "$mode" = --load ]; then
  for process in gateway router; do
    step "${build[@]}" --target "$process" --load --tag "headrace-$process:$version" .
  done
  exit 0
fi

need syft "https://github.com/anchore/syft"
need trivy "https://github.com/aquasecurity/trivy"
# Docker's own builder can't write files like these.
export BUILDX_BUILDER=${BUILDX_BUILDER:-headrace}
docker buildx inspect >/dev/null 2>&1 || step docker buildx create --name "$BUILDX_BUILDER" --driver docker-container

out=build/images
mkdir -p "$out"
for process in gateway router; do
  # Folders: trivy opens no archive of this kind.
  rm -rf "${out:?}/$process"
  step "${build[@]}" --target "$process" --platform linux/amd64 --sbom=true --provenance=mode=max \
    --output "type=oci,tar=false,dest=$out/$process,rewrite-timestamp=true" --metadata-file "$out/$process.json" .
  step syft scan "oci-dir:$out/$process" --output "spdx-json=$out/$process.spdx.json"
  step trivy image --input "$out/$process" --exit-code 1 --severity HIGH,CRITICAL --ignore-unfixed
done
[ "$mode" = --push ] || exit 0

# Only now: what has a hole is never pushed, nor is its fellow.
for process in gateway router; do
  digest=$(sed -n 's/.*"containerimage.digest": "\(sha256:[0-9a-f]*\)".*/\1/p' "$out/$process.json")
  step docker buildx imagetools create --tag "$registry/$process:$version" "oci-layout://$out/$process@$digest"
  echo "$process $digest"
done
echo "next: deploy/images/pin.sh, and commit what it wrote"
