"""`python -m router`: the router as a process."""

import sys

from headrace.runtime.lifecycle import collect_rarely, run, with_native_environment
from router.app import serve
from router.settings import RouterSettings

if __name__ == "__main__":
    with_native_environment()
    collect_rarely()
    sys.exit(run(lambda stop: serve(RouterSettings.load(), stop)))
