"""The resource definitions of the operators that deploy/k8s speaks to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.acceptance.eventually import eventually
from tests.cluster.kubectl import FIELD_MANAGER, Kubectl

ESTABLISHED_SECONDS = 60.0
ESTABLISHED = '{range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Established")].status}{"\\n"}{end}'


@contextmanager
def add_definitions(kubectl: Kubectl, files: list[Path], *, remove: bool = True) -> Iterator[None]:
    """Add those that the cluster lacks, and take them away again; those that it has are its own business."""
    there = {line.partition("=")[0] for line in _states(kubectl)}
    added = {name: file for file in files if (name := _name(file)) not in there}
    try:
        if added:
            chosen = [f"--filename={file}" for file in added.values()]
            kubectl.run("apply", "--server-side", f"--field-manager={FIELD_MANAGER}", *chosen, seconds=120)
            # `kubectl wait` fails where there are no conditions yet.
            eventually(
                lambda: {f"{name}=True" for name in added} <= _states(kubectl),
                seconds=ESTABLISHED_SECONDS,
                what="the definitions are established",
            )
        yield
    finally:
        if remove and added:
            kubectl.run("delete", "crd", "--ignore-not-found", "--wait=false", *added)


def _states(kubectl: Kubectl) -> set[str]:
    return set(kubectl.run("get", "crd", f"--output=jsonpath={ESTABLISHED}").splitlines())


def _name(file: Path) -> str:
    """All of these projects call the file of `plural.group` by `group_plural`."""
    group, _, plural = file.stem.partition("_")
    return f"{plural}.{group}"
