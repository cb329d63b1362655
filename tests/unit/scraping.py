"""What a scrape tells of a process, without a look for its port."""

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from headrace.runtime.admin_http import admin_http


def scraper(monkeypatch: pytest.MonkeyPatch, app: ModuleType) -> Callable[[str], dict[str, float]]:
    """Tells samples of a name by their one label: those of the process that this composition root started last."""
    scrapes: list[Callable[[], Iterable[bytes]]] = []

    def listened_to(*address: Any, metrics: Callable[[], Iterable[bytes]], **others: Any) -> Any:
        scrapes.append(metrics)
        return admin_http(*address, metrics=metrics, **others)

    def told(name: str) -> dict[str, float]:
        return {
            label: sample.value
            for family in text_string_to_metric_families(b"".join(scrapes[-1]()).decode())
            for sample in family.samples
            if sample.name == name
            for label in sample.labels.values()
        }

    monkeypatch.setattr(app, "admin_http", listened_to)
    return told
