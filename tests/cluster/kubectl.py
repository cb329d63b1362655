"""kubectl as a child process: what every platform engineer uses, with a deadline for each call."""

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.local.supervisor import leashed

CALL_SECONDS = 60.0
FIELD_MANAGER = "headrace-tests"

Document = dict[str, Any]  # Any: a Kubernetes object, as JSON has it


@dataclass(frozen=True)
class Kubectl:
    """Commands against one cluster. `kubeconfig` may be a list of files, as the variable of that name is."""

    program: Path
    kubeconfig: Path | str
    cache: Path

    def attempt(self, *words: str, given: str = "", seconds: float = CALL_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a command that may fail; what it says is in the result."""
        return subprocess.run(
            [str(self.program), *words],
            input=given,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=self._environment(),
        )

    def run(self, *words: str, given: str = "", seconds: float = CALL_SECONDS) -> str:
        """Run a command that must succeed, and return what it prints."""
        done = self.attempt(*words, given=given, seconds=seconds)
        assert done.returncode == 0, f"kubectl {' '.join(words)}: {done.stderr.strip()[-4000:]}"
        return done.stdout

    def get(self, *words: str) -> Document:
        """One object, or a list of them."""
        found: Document = json.loads(self.run("get", *words, "--output=json"))
        return found

    def items(self, *words: str) -> list[Document]:
        """The objects of a list."""
        items: list[Document] = self.get(*words)["items"]
        return items

    def apply(self, documents: Iterable[Document], *options: str) -> str:
        """Apply on the server's side; unknown and repeated fields are errors."""
        return self.run(*apply_words(*options), given=as_stream(documents))

    @contextmanager
    def watching(self, *words: str) -> Iterator["subprocess.Popen[str]"]:
        """A `get --watch` whose lines are read while the test goes on."""
        process = subprocess.Popen(
            leashed((str(self.program), "get", *words, "--watch")),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment(),
        )
        try:
            with process:
                try:
                    yield process
                finally:
                    process.kill()
        finally:
            process.wait()

    @contextmanager
    def started(self, *words: str) -> Iterator["subprocess.Popen[str]"]:
        """A command that is spoken with while the test goes on; ended with the block."""
        process = subprocess.Popen(
            leashed((str(self.program), *words)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(),
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "KUBECACHEDIR": str(self.cache)}


def apply_words(*options: str) -> tuple[str, ...]:
    """The words of an apply of what comes on standard input."""
    return ("apply", "--server-side", f"--field-manager={FIELD_MANAGER}", "--validate=strict", "-f", "-", *options)


def as_stream(documents: Iterable[Document]) -> str:
    """Several objects, one after another. In a List they would be compared by kubectl, with what it knows itself."""
    return "\n".join(json.dumps(document) for document in documents)
