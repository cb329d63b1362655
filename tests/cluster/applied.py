"""A case in the cluster: what was sent, what the server made of it, and what it had to say."""

import json
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.eventually import eventually
from tests.cluster import manifests
from tests.cluster.kubectl import FIELD_MANAGER, Document, Kubectl, apply_words, as_stream
from tests.cluster.manifests import Case

APPLY_SECONDS = 120.0
SAME_SECONDS = 30.0
"""Controllers write into the same objects meanwhile; a difference that stays is one of ours."""


@dataclass(frozen=True)
class Applied:
    """A case after it was applied, and compared with what was sent."""

    case: Case
    known: tuple[Document, ...]
    unknown: tuple[Document, ...]
    """Objects of kinds that nobody defined here."""
    objects: tuple[Document, ...]
    """As the server returned them."""
    said: str
    """Warnings."""
    difference: str
    """What another apply would change."""

    @property
    def namespace(self) -> str:
        return self.case.namespace

    @property
    def pods(self) -> list[Document]:
        """Each pod template, as a bare pod."""
        return list(manifests.pods(self.known))


class Applier:
    """Applies cases and remembers them, failures too: one broken overlay is told by each test of it."""

    def __init__(self, kubectl: Kubectl, kinds: frozenset[tuple[str, str]], folder: Path) -> None:
        self._kubectl = kubectl
        self._kinds = kinds
        self._folder = folder
        self._done: dict[Case, Applied | AssertionError] = {}
        self._sent: list[Document] = []

    def apply(self, case: Case) -> Applied:
        """Apply it, unless that was done. Raises AssertionError with what the server says against it."""
        if case not in self._done:
            try:
                self._done[case] = self._apply(case)
            except AssertionError as exc:
                self._done[case] = exc
        done = self._done[case]
        assert isinstance(done, Applied), done
        return done

    def remove(self) -> None:
        """Take away whatever was sent. In namespaces it goes with them; the cluster does the rest by itself."""
        whole = [found for found in self._sent if found["kind"] == "Namespace" or "namespace" not in found["metadata"]]
        if whole:
            words = ("delete", "--ignore-not-found", "--wait=false", "-f", "-")
            self._kubectl.run(*words, given=as_stream(whole), seconds=APPLY_SECONDS)

    def _apply(self, case: Case) -> Applied:
        documents = case.render(self._kubectl, self._folder)
        known = tuple(found for found in documents if (manifests.group(found), found["kind"]) in self._kinds)
        unknown = tuple(found for found in documents if found not in known)
        self._sent += known
        done = self._kubectl.attempt(*apply_words("--output=json"), given=as_stream(known), seconds=APPLY_SECONDS)
        assert done.returncode == 0, done.stderr.strip()[-4000:]
        objects = tuple(json.loads(done.stdout)["items"])
        return Applied(case, known, unknown, objects, done.stderr.strip(), self._difference(known))

    def _difference(self, documents: tuple[Document, ...]) -> str:
        last = ""

        def same() -> bool:
            nonlocal last
            words = ("diff", "--server-side", f"--field-manager={FIELD_MANAGER}", "-f", "-")
            done = self._kubectl.attempt(*words, given=as_stream(documents), seconds=APPLY_SECONDS)
            last = done.stdout + done.stderr
            return done.returncode == 0

        try:
            eventually(same, seconds=SAME_SECONDS, what="the server has what was sent")
        except AssertionError:
            return last
        return ""
