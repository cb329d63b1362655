"""Parts that some tests need and a machine may lack."""

import os
from typing import NoReturn

import pytest

REQUIRE_ALL = "REQUIRE_ALL_PARTS"


def missing(part: str, remedy: str) -> NoReturn:
    """Skip the test visibly and say how to get the part; where CI must have everything, fail instead."""
    told = f"{part} is missing: {remedy}"
    if os.environ.get(REQUIRE_ALL) == "1":
        pytest.fail(f"{told} ({REQUIRE_ALL}=1 makes this a failure)", pytrace=False)
    pytest.skip(told)
