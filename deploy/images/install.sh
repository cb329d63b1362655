#!/usr/bin/env bash
# Everything that our images are made of, as the Dockerfile runs it: the package and the exact versions that were tested,
# nothing else. A test builds a root file system by the same steps. PYTHON names the interpreter.
#
#   deploy/images/install.sh SOURCE TARGET      e.g. /src /opt/headrace
set -euo pipefail

source=$(realpath "$1")
target=$2
pip=("$target/bin/python" -m pip --disable-pip-version-check --no-cache-dir)
locked=("${pip[@]}" install --quiet --no-compile --require-hashes --only-binary=:all: --no-deps)

"${PYTHON:-python3}" -m venv "$target"
"${locked[@]}" -r "$source/requirements/runtime.txt"
"${locked[@]}" -r "$source/requirements/build.txt"
# A copy: building writes beside the sources, which may be a checkout of somebody's. Its place is the same every time, for
# pip writes it down, and the same sources shall give the same image.
work=$target/build
mkdir "$work"
cp -R "$source"/{pyproject.toml,README.md,LICENSE,gateway,router,aggregator,headrace} "$work"
"${pip[@]}" install --quiet --no-compile --no-index --no-deps --no-build-isolation "$work"
rm -rf "$work"
# What installs has no business in what runs.
"${pip[@]}" uninstall --quiet --yes setuptools pip
# The root file system is read-only: what is not compiled now is compiled at every start, and so is what was compiled for
# other times of the sources than a layer gives them.
"$target/bin/python" -m compileall -q -j 0 -f --invalidation-mode unchecked-hash "$target/lib" || true

# A broken image fails here, and not when the first pod starts.
cd /
for module in gateway.app router.app aggregator.app headrace.cli; do
  "$target/bin/python" -P -c "import $module"
done
"$target/bin/headrace" --version
