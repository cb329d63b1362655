"""The one place where tests wait for a condition that nothing tells them of."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_SECONDS = 0.02


def eventually(look: Callable[[], T | None], *, seconds: float, what: str) -> T:
    """Look again and again until there is something true to see, and return it; fail after `seconds`, naming `what`.

    An AssertionError of `look` counts as "not yet"; the last one is told when time is up.
    """
    deadline = time.monotonic() + seconds
    last: object = None
    while True:
        try:
            if seen := look():
                return seen
            last = seen
        except AssertionError as exc:
            last = exc
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}; last seen: {last}"
        time.sleep(LOOK_SECONDS)
