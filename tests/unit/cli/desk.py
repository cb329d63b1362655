"""An operator's desk for tests: the command line on a database of its own."""

import json
from datetime import UTC, datetime

from typer.testing import CliRunner

from headrace.cli import app
from headrace.store.engine import Store

NOW = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)


class Desk:
    """An operator's, with a database."""

    def __init__(self, url: str) -> None:
        self.url = url

    def store(self) -> Store:
        return Store(self.url)

    def run(self, *words: str, stdin: str | None = None) -> tuple[int, str, str]:
        # Whatever runs from the state folder of who runs the tests is not meant.
        env = {"HEADRACE_DATABASE__URL": self.url, "XDG_STATE_HOME": "/nowhere", "HEADRACE_GATEWAY__POLICY_FILE": None}
        done = CliRunner(env=env).invoke(app, words, input=stdin)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    def told(self, *words: str, stdin: str | None = None) -> str:
        status, out, err = self.run(*words, stdin=stdin)
        assert status == 0, err
        return out

    def refused(self, *words: str, stdin: str | None = None) -> str:
        status, out, err = self.run(*words, stdin=stdin)
        assert (status, out) == (2, "")
        assert "Traceback" not in err
        return err

    def grants(self, name: str = "acme") -> object:
        return json.loads(self.told("tenants", "show", name, "--json"))["grants"]

    def acme(self) -> None:
        self.told("tenants", "create", "acme", "--calls-per-second", "10", "--calls-per-day", "30")


def rows(text: str) -> list[list[str]]:
    """The cells of a table below its head."""
    return [line.split() for line in text.splitlines()[1:]]
