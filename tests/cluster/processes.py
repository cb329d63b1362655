"""The processes of a cluster of the tests' own: started, waited for, ended in the reverse order."""

import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from headrace.local.supervisor import leashed
from tests.acceptance.eventually import eventually

START_SECONDS = 120.0
STOP_SECONDS = 20.0
LAST_WORDS_BYTES = 3000


@dataclass
class Processes:
    """Children by name, each with a log in `home`."""

    home: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *command: str, env: Mapping[str, str] | None = None) -> None:
        """Start one, or start it again."""
        with self.log(name).open("ab") as out:
            self._running[name] = subprocess.Popen(
                leashed(command),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.home,
                env=env,
                start_new_session=True,  # Ctrl-C is for pytest, which ends them in order
            )

    def wait(self, name: str, url: str, trusting: ssl.SSLContext) -> None:
        """Until it says that it is well; a process that ended is told with its last words at once."""
        what = f"{name} answers {url}"
        eventually(lambda: self.ended(name) or _well(url, trusting), seconds=START_SECONDS, what=what)
        assert not self.ended(name), f"{name} ended: {self.last_words(name)}"

    def ended(self, name: str) -> bool:
        return self._running[name].poll() is not None

    def kill(self, name: str) -> None:
        """Without a chance to tidy up."""
        process = self._running.pop(name)
        process.kill()
        process.wait(STOP_SECONDS)

    def stop(self) -> None:
        """End everything at once: nobody wants the data, and a polite API server waits for its watchers."""
        for process in reversed(self._running.values()):
            process.kill()
        for process in self._running.values():
            process.wait(STOP_SECONDS)
        self._running.clear()

    def log(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def last_words(self, name: str) -> str:
        return self.log(name).read_bytes()[-LAST_WORDS_BYTES:].decode(errors="replace")


def _well(url: str, trusting: ssl.SSLContext) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5, context=trusting) as answer:  # noqa: S310  ours
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
