"""`headrace keys check`; `keys new` is beside all commands in `test_cli`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli import app
from headrace.local.keys import new_key


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(new_key(tenant="acme", key_id="a").entry)
    return path


def test_a_good_key_file_is_told_by_how_many_it_has(file: Path) -> None:
    done = CliRunner().invoke(app, ["keys", "check", str(file)])

    assert (done.exit_code, done.output) == (0, f"{file}: 1 key\n")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (new_key(tenant="acme", key_id="a").entry, "Cannot declare ('keys', 'a') twice (at line"),
        ('[keys.b]\ntenant = "a b"\nroles = ["root"]\n', "keys.b: roles must be a list of"),
    ],
)
def test_mistakes_are_told_and_the_status_is_2(file: Path, more: str, told: str) -> None:
    file.write_text(file.read_text() + more)

    done = CliRunner().invoke(app, ["keys", "check", str(file)])

    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert all(line.startswith("headrace: ") for line in done.stderr.splitlines())


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["keys", "check", str(tmp_path / "none")])

    assert done.exit_code == 2
    assert "No such file" in done.stderr
