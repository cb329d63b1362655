# Sourced by install-gateway.sh and install-router.sh: the package and the exact versions that were tested, nothing else.
# Takes the source's folder and the folder of the virtual environment; PYTHON names the interpreter.

install_headrace() {
  local source target=$2 work
  source=$(realpath "$1")
  # A copy: building writes beside the sources, which may be a checkout of somebody's.
  work=$(mktemp -d)
  cp -R "$source"/{pyproject.toml,README.md,LICENSE,gateway,router,aggregator,headrace} "$work"
  local pip=("$target/bin/python" -m pip --disable-pip-version-check --no-cache-dir install --quiet)

  "${PYTHON:-python3}" -m venv "$target"
  "${pip[@]}" --require-hashes --only-binary=:all: --no-deps -r "$source/requirements/runtime.txt"
  "${pip[@]}" --require-hashes --only-binary=:all: --no-deps -r "$source/requirements/build.txt"
  "${pip[@]}" --no-index --no-deps --no-build-isolation "$work"
  rm -rf "$work"
  # What installs has no business in what runs.
  "$target/bin/python" -m pip --disable-pip-version-check uninstall --quiet --yes setuptools pip
  # The root file system is read-only: what is not compiled now is compiled at every start.
  "$target/bin/python" -m compileall -q -j 0 "$target/lib" || true
}
