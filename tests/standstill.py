"""Tests that failed because the machine stood still are run again, and said to have been.

A virtual machine that shares its host may not run for seconds, all of its processes at once. Then deadlines pass in
which nobody did anything, and Triton's Python backend, which takes a model process for dead that did not stir for a
second, kills it and often itself. Such a failure tells nothing of the code, and no deadline is long enough to rule it
out. So this measures: only a test that failed while a thread got no turn for a second, or up to 30 s later, is run
again, on parts that are started anew. The thread can't tell a machine that stood still from a test that kept Python's
lock for so long; what was run again is always told. Failures of clean-up count whatever the machine did: they may tell
of all the tests before. So do those of a cluster's tests, which build on what the tests before them did to it.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import pytest_timeout  # type: ignore[import-untyped]  # it has no types
from _pytest.runner import CallInfo, get_reraise_exceptions, runtestprotocol

STILL_SECONDS = 1.0
"""So long without a turn for a thread that asks for one ten times a second, and the machine stood still."""
HEALING_SECONDS = 30.0
"""What broke then is whole again after so long."""
RUNS = 3
LOOK_SECONDS = 0.1
_PROPERTY = "run again"


class Standstills:
    """When this process had no turn, as seen by a thread of its own."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="standstills", daemon=True)

    def begin(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def end(self) -> None:
        """Watch no longer."""
        self._ended.set()
        self._thread.join()

    def longest_since(self, moment: float) -> float:
        """How long the longest standstill took, of those that ended after `moment`; 0 where there was none."""
        return max((seconds for ended_at, seconds in self._seen if ended_at >= moment), default=0.0)

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(LOOK_SECONDS):
            now = time.monotonic()
            if now - before >= STILL_SECONDS:
                self._seen.append((now, now - before))
            before = now


class RunAgain:
    """The plugin: one for each process that runs tests."""

    def __init__(self) -> None:
        self._standstills = Standstills()

    def pytest_sessionstart(self) -> None:
        self._standstills.begin()

    def pytest_sessionfinish(self) -> None:
        self._standstills.end()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a test as pytest does, and again where the machine spoilt it."""
        if "cluster" in item.path.relative_to(item.config.rootpath).parts or item.config.getoption("maxfail"):
            return None  # who wants to stop at the first failure is told of it at once
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, nextitem):
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def _reports(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        """Of the last run."""
        since = time.monotonic() - HEALING_SECONDS
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        for _ in range(RUNS - 1):
            failed = [report for report in reports if report.failed]
            if not failed or failed[-1].when == "teardown":
                break
            time.sleep(2 * LOOK_SECONDS)  # for the watch to have looked
            still = self._standstills.longest_since(since)
            if not still:
                break
            with _timed(item):
                cleared = CallInfo.from_call(
                    lambda: item.session._setupstate.teardown_exact(None),
                    when="teardown",
                    reraise=get_reraise_exceptions(item.config),
                )
                if cleared.excinfo is not None:
                    reports.append(pytest.TestReport.from_item_and_call(item, cleared))
                    break
                told = f"the machine stood still for {still:.1f} s: {_gist(failed[0])}"
                item.user_properties.append((_PROPERTY, told))
                item._report_sections.clear()
                since = time.monotonic()
                reports = runtestprotocol(item, log=False, nextitem=nextitem)
        return reports


@contextmanager
def _timed(item: pytest.Item) -> Iterator[None]:
    """The limit of a test, which pytest-timeout lifts at its first failure."""
    settings = pytest_timeout._get_item_settings(item)
    hook = item.config.pluginmanager.hook
    if settings.timeout:
        hook.pytest_timeout_set_timer(item=item, settings=settings)
    try:
        yield
    finally:
        hook.pytest_timeout_cancel_timer(item=item)


def _gist(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).partition("\n")[0]


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RunAgain(), "run-again")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every test that was run again, and why."""
    told = sorted(set(_told(terminalreporter)))
    if told:
        terminalreporter.section("run again, as the machine had stood still")
        for line in told:
            terminalreporter.line(line)


def _told(reporter: pytest.TerminalReporter) -> Iterator[str]:
    for reports in reporter.stats.values():
        for report in reports:
            for name, why in getattr(report, "user_properties", ()):
                if name == _PROPERTY:
                    yield f"{report.nodeid}: {why}"
