"""Reads what a process counts from its /metrics, and what it says of itself on /readyz."""

import urllib.error
import urllib.request
from http.client import HTTPException

from prometheus_client.parser import text_string_to_metric_families

SECONDS = 30.0


def get(address: str, path: str) -> tuple[int, str]:
    """Status and text of an HTTP answer."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metric(address: str, name: str, **labels: str) -> float:
    """The value of a sample; 0 where there is none yet. Where nobody answers an AssertionError, for `eventually`."""
    try:
        status, text = get(address, "/metrics")
    except (OSError, HTTPException) as error:
        raise AssertionError(f"{address} does not answer: {error}") from error
    assert status == 200
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
