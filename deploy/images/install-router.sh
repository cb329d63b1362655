#!/usr/bin/env bash
# Everything that the router's image is made of, as the Dockerfile runs it: a test builds a root file system by the same steps.
#
#   deploy/images/install-router.sh SOURCE TARGET      e.g. /src /opt/headrace
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/install-common.sh"

source=$1 target=$2
install_headrace "$source" "$target"
# A broken image fails here, and not when the first pod starts.
cd /
for module in router.app; do
  "$target/bin/python" -P -c "import $module"
done
"$target/bin/headrace" --version
