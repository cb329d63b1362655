"""What callers felt of a fault."""

from dataclasses import dataclass, field

from tests.cluster.node.deployed.load import Report


@dataclass(frozen=True)
class Recovery:
    """One fault, and the load around it."""

    fault: str
    report: Report
    since: float
    """When it was done, in seconds since the epoch."""

    @property
    def row(self) -> str:
        """As a line of a table in Markdown."""
        cells = (
            self.fault,
            f"{len(self.report.answered)}",
            f"{len(self.report.errors)}",
            f"{self.report.silence(self.since):.1f} s",
            f"{self.report.slowest:.1f} s",
        )
        return f"| {' | '.join(cells)} |"


@dataclass
class Recoveries:
    """In the order in which they were seen."""

    seen: list[Recovery] = field(default_factory=list)

    def add(self, fault: str, report: Report, since: float) -> None:
        self.seen.append(Recovery(fault, report, since))

    def table(self) -> list[str]:
        """Lines of Markdown; none where nothing was broken."""
        if not self.seen:
            return []
        head = [
            "| fault | answered | errors | longest time without an answer | slowest call |",
            "| --- | --- | --- | --- | --- |",
        ]
        return ["", *head, *(recovery.row for recovery in self.seen)]
