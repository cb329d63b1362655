"""The aggregator's settings."""

import pytest

from aggregator.settings import AggregatorSettings
from headrace.runtime.settings import SettingsError


def test_without_a_database_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="HEADRACE_DATABASE__URL: set it"):
        AggregatorSettings.load()
    monkeypatch.setenv("HEADRACE_DATABASE__URL", "sqlite:////tmp/headrace.db")
    assert AggregatorSettings.load().aggregator.retention_days == 400


def test_usage_is_kept_for_a_month_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_DATABASE__URL", "sqlite:////tmp/headrace.db")
    monkeypatch.setenv("HEADRACE_AGGREGATOR__RETENTION_DAYS", "31")
    with pytest.raises(SettingsError, match="RETENTION_DAYS"):
        AggregatorSettings.load()
