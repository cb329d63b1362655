#!/usr/bin/env bash
# NVIDIA's perf_analyzer, prepared once and run under a timeout.
#
#   benchmarks/perf_analyzer.sh ADDRESS [KEY] [more options of perf_analyzer ...]
#   benchmarks/perf_analyzer.sh 127.0.0.1:8001 "$KEY" -m copy --shape INPUT0:16 --concurrency-range 32
#
# Its wheel is built for a newer C library than Debian 12 has, so this one is taken from Debian trixie into a folder of
# its own (build/benchmarks/perf_analyzer); nothing is installed on the system. Take the rate as concurrency / average
# latency: its own figure is rounded to whole seconds. PERF_ANALYZER_SECONDS (default 120) ends a run that hangs.
set -euo pipefail

version=2.60.0
here=$(cd "$(dirname "$0")/.." && pwd)
place=${PERF_ANALYZER_DIR:-$here/build/benchmarks/perf_analyzer}
python=${PYTHON:-$here/.venv/bin/python}

prepare() {
    local scratch=$place.part
    rm -rf "$scratch"
    mkdir -p "$scratch/apt/lists/partial" "$scratch/apt/cache/archives/partial" "$scratch/wheel" "$scratch/libc"
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --platform manylinux_2_38_x86_64 \
        --dest "$scratch/wheel" "perf-analyzer==$version"
    "$python" -m zipfile -e "$scratch"/wheel/*.whl "$scratch/wheel"

    # The system's own sources with another release: whatever mirror this machine uses is used here too.
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v -e security -e updates | head -n 1)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$scratch/apt/sources.list"
    local -a apt=(
        -o "Dir::State=$scratch/apt" -o "Dir::State::status=/dev/null" -o "Dir::Cache=$scratch/apt/cache"
        -o "Dir::Etc::SourceList=$scratch/apt/sources.list" -o "Dir::Etc::SourceParts=/dev/null"
        -o "APT::Sandbox::User=root" -o "Debug::NoLocking=1"
    )
    apt-get "${apt[@]}" --quiet --quiet update
    (cd "$scratch/apt" && apt-get "${apt[@]}" --quiet --quiet download libc6 libstdc++6 libgcc-s1)
    local package
    for package in "$scratch"/apt/*.deb; do dpkg -x "$package" "$scratch/libc"; done
    rm -rf "$scratch/apt" "$scratch"/wheel/*.whl
    rm -rf "$place"
    mv "$scratch" "$place"
}

if [ $# -lt 1 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
[ -d "$place" ] || prepare

address=$1
shift
header=()
if [ $# -ge 1 ] && [ "${1#-}" = "$1" ]; then
    [ -z "$1" ] || header=(-H "authorization:Bearer $1") # a space after the colon would become part of the value
    shift
fi
[ $# -ge 1 ] || set -- -m copy --shape INPUT0:16 --concurrency-range 32 --request-count 4000

libraries=$(dirname "$(find "$place/libc" -name libc.so.6 -print -quit)")
loader=$(find "$place/libc" -name 'ld-linux-x86-64.so.2' -print -quit)
binary=$(find "$place/wheel" -type f -name perf_analyzer -size +1M -print -quit)
chmod +x "$binary"
exec timeout --kill-after=5 "${PERF_ANALYZER_SECONDS:-120}" "$loader" \
    --library-path "$libraries:/lib/x86_64-linux-gnu:/usr/lib/x86_64-linux-gnu" \
    "$binary" -u "$address" -i grpc -a "${header[@]}" "$@"
