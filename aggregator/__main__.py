"""`python -m aggregator`: the aggregator as a process."""

import sys

from aggregator.app import serve
from aggregator.settings import AggregatorSettings
from headrace.runtime.lifecycle import run

if __name__ == "__main__":
    sys.exit(run(lambda stop: serve(AggregatorSettings.load(), stop)))
