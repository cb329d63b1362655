"""When Redis counts as away."""

from gateway.limits.breaker import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, Breaker


def test_it_opens_at_once_and_tries_ever_less_often() -> None:
    breaker = Breaker()
    assert breaker.due(0)
    assert breaker.failed(0)
    assert breaker.open

    now, waits = 0.0, []
    for _ in range(8):
        start = now
        while not breaker.due(now):
            now += 0.01
        waits.append(round(now - start, 1))
        assert not breaker.failed(now)

    assert waits == [
        FIRST_RETRY_SECONDS,
        0.2,
        0.4,
        0.8,
        1.6,
        LAST_RETRY_SECONDS,
        LAST_RETRY_SECONDS,
        LAST_RETRY_SECONDS,
    ]


def test_an_answer_closes_it_and_the_next_outage_starts_anew() -> None:
    breaker = Breaker()
    breaker.failed(0)
    breaker.failed(1)

    assert breaker.answered()
    assert not breaker.answered()
    assert breaker.due(1)
    assert breaker.failed(1)
    assert breaker.due(1 + FIRST_RETRY_SECONDS)
