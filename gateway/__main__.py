"""`python -m gateway`: the gateway as a process."""

import sys

from gateway.app import serve
from gateway.settings import GatewaySettings
from headrace.runtime.lifecycle import collect_rarely, run, with_native_environment

if __name__ == "__main__":
    with_native_environment()
    collect_rarely()
    sys.exit(run(lambda stop: serve(GatewaySettings.load(), stop)))
