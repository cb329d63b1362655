"""Whether something answers, whatever is asked for."""

from typing import Literal

import pytest

from headrace.local.probe import Probe


@pytest.mark.parametrize("kind", ["http", "kafka", "tcp"])
async def test_a_name_that_no_host_can_have_does_not_answer(kind: Literal["http", "kafka", "tcp"]) -> None:
    assert not await Probe(kind=kind, host="a..b", port=1).healthy()
