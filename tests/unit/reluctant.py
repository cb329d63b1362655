"""Logs that let nobody in at first, for tests of how processes start."""

import asyncio
from typing import Self

from headrace.bus.protocols import LogUnavailableError


class Reluctant:
    """A log that refuses to be entered so many times."""

    def __init__(self, refusals: float) -> None:
        self._refusals = refusals
        self.tries = 0
        self.is_tried_twice = asyncio.Event()
        self.left = False

    async def __aenter__(self) -> Self:
        self.tries += 1
        if self.tries > 1:
            self.is_tried_twice.set()
        if self.tries <= self._refusals:
            raise LogUnavailableError("told to fail")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True


async def nothing(*_: object) -> None:
    """What a broker that has all topics has to be told."""
