"""Random requests against the routing-field scan and the real parser: `make fuzz`."""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway.routing_fields"]):
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.fuzz.agreement import assert_no_worse


def main() -> None:
    """Run until a request is found that the two read differently, or time is up."""
    atheris.Setup(sys.argv, assert_no_worse)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
