"""A process in a pod is struck while callers call, and what is to be seen of it then."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.cluster.kubectl import Document
from tests.cluster.node.deployed.headrace import GATEWAY, RUNNING, TRITON, Headrace, Part
from tests.cluster.node.deployed.load import BUSY, Report
from tests.cluster.node.machine import Machine

REPUBLISHED = "headrace_gateway_republished_total"
AFTERWARDS = 40
"""Calls once all is well again."""
SLACK_SECONDS = 60.0
"""By which a call may outlast the fault: partitions are taken, clients connect anew, and the machine is busy."""


@dataclass(frozen=True)
class Struck:
    """What was seen; times in seconds since the epoch."""

    part: Part
    report: Report
    since: float
    ready: float
    """When the process was started again, and its pod ready."""
    republished: float
    """How many calls gateways gave to another router meanwhile."""

    @property
    def away(self) -> float:
        """For how many seconds the pod did not serve as before."""
        return self.ready - self.since

    def check(self) -> None:
        """It was felt, by those alone whom it had to reach, and is over."""
        report = self.report
        assert report.after(self.ready), "calls go on"
        assert [error for error in report.errors if error.at < self.since or error.began > self.ready] == []
        longest, silence = report.longest, report.silence(self.since)
        if self.part.deployment == GATEWAY:
            # Nobody else knows its callers; the other gateway's notice nothing.
            assert report.errors, "the gateway had calls"
            assert longest < self.away + SLACK_SECONDS
            assert self._answered_meanwhile(), "the other gateway's callers had answers"
        elif self.part.deployment == TRITON:
            # The other router runs what this one had, and does not wait until it is back.
            assert self.republished > 0, "the router had calls"
            assert report.errors == ()
            assert max(answer.at for answer in report.answers if answer.began < self.since) < self.ready
            assert self._answered_meanwhile(), "the other router ran calls"
        else:
            # The only broker: nothing is answered until it is back.
            assert silence > 1.0, "the broker was away"
            assert max(longest, silence) < self.away + SLACK_SECONDS

    def _answered_meanwhile(self) -> bool:
        """Whether calls that were made well after the blow were answered before all was as it had been."""
        middle = (self.since + self.ready) / 2
        return any(answer.began > middle and answer.at < self.ready for answer in self.report.answers)


def strike(
    machine: Machine,
    headrace: Headrace,
    part: Part,
    blow: signal.Signals,
    *,
    seconds: float,
    meanwhile: Callable[[Document], None] = lambda _: None,
) -> Struck:
    """Send a signal to a process that has calls under way, and see it started again within `seconds`."""
    with headrace.load(*BUSY) as load:
        republished = headrace.total(GATEWAY, REPUBLISHED)
        pod = (
            headrace.busiest(part.deployment, "slow")
            if part.deployment in RUNNING
            else headrace.pods(part.deployment)[0]
        )
        since = time.time()
        os.kill(machine.process(pod, part.program), blow)
        meanwhile(pod)
        headrace.await_restart(pod, part.container, seconds=seconds)
        ready = time.time()
        with headrace.load("--calls", str(AFTERWARDS)) as later:
            after = later.stop()
        assert (len(after.answered), after.errors) == (AFTERWARDS, ())
        report = load.stop()
    return Struck(part, report, since, ready, headrace.total(GATEWAY, REPUBLISHED) - republished)
