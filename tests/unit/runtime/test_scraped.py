"""What is read of another process's /metrics."""

import pytest

from headrace.runtime.scraped import Sample, samples


def test_numbers_come_with_their_names_and_labels() -> None:
    text = """\
# HELP calls_total Calls.
# TYPE calls_total counter
calls_total{reason="OK",model="a \\"b\\""} 3
# TYPE wait_seconds histogram
wait_seconds_bucket{le="0.5"} 1
wait_seconds_bucket{le="+Inf"} 2
wait_seconds_sum 0.75
wait_seconds_count 2
"""

    assert list(samples(text)) == [
        Sample("calls_total", (("model", 'a "b"'), ("reason", "OK")), 3.0),
        Sample("wait_seconds_bucket", (("le", "0.5"),), 1.0),
        Sample("wait_seconds_bucket", (("le", "+Inf"),), 2.0),
        Sample("wait_seconds_sum", (), 0.75),
        Sample("wait_seconds_count", (), 2.0),
    ]


@pytest.mark.parametrize("text", ["<html><body>Not Found</body></html>", '{"error": "Not Found"}', "a{b", "a one"])
def test_what_is_no_such_text_is_told_in_one_way(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  whatever its parser says
        list(samples(text))


def test_nothing_is_nothing() -> None:
    assert list(samples("")) == []
