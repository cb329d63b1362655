"""What another process's `/metrics` says, as numbers."""

from collections.abc import Iterator
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """One number of a scrape."""

    name: str
    labels: Labels
    """Name and value of each, by name: the same series has the same, whatever order it was written in."""
    value: float


def samples(text: str) -> Iterator[Sample]:
    """Every number of a scrape in Prometheus' text format. Raises ValueError where it is none."""
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                yield Sample(sample.name, tuple(sorted(sample.labels.items())), sample.value)
    except (IndexError, KeyError, TypeError) as exc:
        # What the parser makes of what is no such text, HTML for example.
        raise ValueError(f"not in Prometheus' text format: {type(exc).__name__}") from None
