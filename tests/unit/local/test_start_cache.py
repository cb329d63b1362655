"""The broker's quick start: made by one trial run, whole or not at all. A program stands in for Java and its broker."""

import stat
import sys
from pathlib import Path

import pytest

from headrace.local.broker import FIRST_JAVA_WITH_START_CACHE, BrokerInstall
from headrace.local.java import Java
from headrace.local.start_cache import StartCacheError, prepare_start_cache

JAVA = """\
#!{python} -IS
import re, signal, socket, sys
from pathlib import Path

with Path(__file__).with_name("ran").open("a") as ran:
    print("format" if "format" in sys.argv else "trial", file=ran)
if "format" in sys.argv:
    sys.exit()
(output,) = (word.partition("=")[2] for word in sys.argv if word.startswith("-XX:AOTCacheOutput="))

def stop(*_):
    {at_its_end}
    sys.exit()

signal.signal(signal.SIGTERM, stop)
{at_its_start}
port = int(re.search(r"^listeners=CLIENT://127.0.0.1:(\\d+)", Path(sys.argv[-1]).read_text(), re.M)[1])
with socket.create_server(("127.0.0.1", port)) as listening:
    while True:
        asking, _ = listening.accept()
        with asking:
            question = asking.recv(100)
            asking.sendall(question[:4] + question[8:12])
"""


def installed(
    folder: Path,
    *,
    version: int = FIRST_JAVA_WITH_START_CACHE,
    at_its_start: str = "",
    at_its_end: str = 'Path(output).write_text("classes")',
) -> BrokerInstall:
    executable = folder / "java"
    executable.write_text(JAVA.format(python=sys.executable, at_its_start=at_its_start, at_its_end=at_its_end))
    executable.chmod(stat.S_IRWXU)
    return BrokerInstall(java=Java(executable, version), jars=[folder / "kafka.jar"])


def ran(folder: Path) -> list[str]:
    """What the stand-in did, in order."""
    told = folder / "ran"
    return told.read_text().split() if told.exists() else []


def test_one_trial_run_makes_it_and_the_next_start_finds_it(tmp_path: Path) -> None:
    install = installed(tmp_path)

    assert prepare_start_cache(install) is True
    assert prepare_start_cache(install) is False

    assert ran(tmp_path) == ["format", "trial"]
    assert install.start_cache is not None
    assert install.start_cache.read_text() == "classes"
    assert f"-XX:AOTCache={install.start_cache}" in install.command(tmp_path)


def test_a_java_that_can_use_none_is_not_run(tmp_path: Path) -> None:
    install = installed(tmp_path, version=FIRST_JAVA_WITH_START_CACHE - 1)

    assert prepare_start_cache(install) is False

    assert ran(tmp_path) == []


@pytest.mark.parametrize(
    ("at_its_start", "at_its_end", "told"),
    [
        ('sys.exit(Path(output).write_text("half of them"))', "pass", "did not come up"),
        ("", "pass", "left no cache"),
    ],
)
def test_a_trial_run_that_fails_leaves_nothing_behind(
    tmp_path: Path, at_its_start: str, at_its_end: str, told: str
) -> None:
    install = installed(tmp_path, at_its_start=at_its_start, at_its_end=at_its_end)

    with pytest.raises(StartCacheError, match=told):
        prepare_start_cache(install)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["java", "ran"]
