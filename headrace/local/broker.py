"""A real Apache Kafka broker as a child process: one node, loopback only, its data in a folder of ours."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headrace.local.java import Java
from headrace.local.program import Program
from headrace.local.supervisor import leashed

CLUSTER_ID = "aGVhZHJhY2UtbG9jYWwtMQ"
"""Any 16 bytes in base64; one and the same, so that a lost `meta.properties` does not strand the data."""
LARGEST_RECORD_BYTES = 65 << 20
"""A message of 64 MiB and its envelope."""
FORMAT_SECONDS = 60

_JVM_FLAGS = (
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    # A broker that is out of memory half works; a dead one is restarted.
    "-XX:+ExitOnOutOfMemoryError",
)

_LOG4J2 = """\
status = error
shutdownHook = disable
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1}: %m%n
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
logger.started.name = kafka.server.KafkaRaftServer
logger.started.level = INFO
"""


class BrokerError(Exception):
    """The broker's storage could not be made; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Sasl:
    """Makes the broker ask for a user and a password, without encryption."""

    mechanisms: tuple[str, ...] = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
    users: Mapping[str, str] = field(repr=False)
    """Passwords by name."""


@dataclass(frozen=True, kw_only=True)
class BrokerInstall:
    """What runs a broker, wherever its data is."""

    java: Java
    jars: Sequence[Path]

    @property
    def class_path(self) -> str:
        """As Java's `-cp` wants it."""
        return ":".join(map(str, self.jars))

    @property
    def start_cache(self) -> Path | None:
        """The file of classes loaded ahead of time, which halves the start; None where this Java can't use one."""
        if self.java.version < FIRST_JAVA_WITH_START_CACHE:
            return None
        key = hashlib.sha256(f"{self.java.executable}\n{self.java.version}\n{self.class_path}".encode()).hexdigest()
        return self.jars[0].parent / f"start-{key[:12]}.aot"

    def command(self, home: Path, *more_flags: str) -> tuple[str, ...]:
        """Java with our flags and class path; the main class and its arguments follow."""
        cache = self.start_cache
        ahead = (f"-XX:AOTCache={cache}", "-Xlog:disable") if cache is not None and cache.exists() else ()
        return (
            str(self.java.executable),
            *_JVM_FLAGS,
            *(more_flags or ahead),
            f"-Dlog4j2.configurationFile={home / 'log4j2.properties'}",
            "-cp",
            self.class_path,
        )


FIRST_JAVA_WITH_START_CACHE = 25


def prepare_storage(
    install: BrokerInstall,
    home: Path,
    *,
    port: int,
    controller_port: int,
    sasl: Sasl | None,
    env: Mapping[str, str] | None = None,
) -> None:
    """Write the broker's settings into `home`, and format its storage if that never happened. Raises BrokerError.

    Ports may change from start to start, the data stays. Blocks for about a second the first time, while a process runs
    that gets `env` besides what it inherits, and dies with this one.
    """
    home.mkdir(parents=True, exist_ok=True)
    home.chmod(0o700)  # the settings may hold passwords, the data holds every request
    (home / "log4j2.properties").write_text(_LOG4J2, encoding="utf-8")
    settings = home / "server.properties"
    values = properties(home / "data", port=port, controller_port=controller_port, sasl=sasl)
    settings.write_text("".join(f"{name}={value}\n" for name, value in values.items()), encoding="utf-8")
    if (home / "data" / "meta.properties").exists():
        return
    # What a cut-off format left behind makes the next one refuse.
    shutil.rmtree(home / "data", ignore_errors=True)
    _format(install, home, settings, sasl, env or {})


def _format(install: BrokerInstall, home: Path, settings: Path, sasl: Sasl | None, env: Mapping[str, str]) -> None:
    scram = [
        argument
        for mechanism in (sasl.mechanisms if sasl else ())
        if mechanism.startswith("SCRAM")
        for name, password in (sasl.users.items() if sasl else ())
        for argument in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
    ]
    command = (*install.command(home), "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(settings))
    try:
        done = subprocess.run(  # noqa: S603  our own command, no shell
            leashed((*command, *scram)),
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FORMAT_SECONDS,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise BrokerError(f"could not format the broker's storage in {home}: {exc}") from None
    if done.returncode != 0:
        told = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise BrokerError(f"could not format the broker's storage in {home}: {told[-1] if told else 'no reason given'}")


def properties(data: Path, *, port: int, controller_port: int, sasl: Sasl | None = None) -> dict[str, str]:
    """The broker's settings. Listens on loopback only; topics are made by who needs them, never by being named."""
    protocol = "SASL_PLAINTEXT" if sasl else "PLAINTEXT"
    values = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"CLIENT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"CLIENT://127.0.0.1:{port}",
        "listener.security.protocol.map": f"CLIENT:{protocol},CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "CLIENT",
        "log.dirs": str(data),
        "auto.create.topics.enable": "false",
        "default.replication.factor": "1",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        # A killed router's partitions move within 6 s, a new one's come within 1 s; by default it is 45 and 5.
        "group.consumer.min.session.timeout.ms": "6000",
        "group.consumer.session.timeout.ms": "6000",
        "group.consumer.min.heartbeat.interval.ms": "1000",
        "group.consumer.heartbeat.interval.ms": "1000",
        # After a kill the controller lets the broker in again only when its last session has run out: 9 s by default.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        "message.max.bytes": str(LARGEST_RECORD_BYTES),
        "replica.fetch.max.bytes": str(LARGEST_RECORD_BYTES),
        "socket.request.max.bytes": str(LARGEST_RECORD_BYTES + (8 << 20)),
        # Requests are read into the heap: bounded, so that many large ones wait in their sockets instead of filling it.
        "queued.max.request.bytes": str(2 * LARGEST_RECORD_BYTES),
        # The default takes 128 MiB of the heap at once, for compacted topics that here hold a few hundred keys.
        "log.cleaner.dedupe.buffer.size": str(4 << 20),
        "log.retention.check.interval.ms": "30000",
    }
    return values | (_sasl_properties(sasl) if sasl else {})


def _sasl_properties(sasl: Sasl) -> dict[str, str]:
    ours = "headrace-broker"
    plain = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    users = "".join(f' user_{name}="{password}"' for name, password in sasl.users.items())
    values = {
        "sasl.enabled.mechanisms": ",".join({"PLAIN": None} | dict.fromkeys(sasl.mechanisms)),
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.client.plain.sasl.jaas.config": (
            f'{plain} username="{ours}" password="{ours}" user_{ours}="{ours}"{users};'
        ),
    }
    for mechanism in sasl.mechanisms:
        if mechanism.startswith("SCRAM"):
            values[f"listener.name.client.{mechanism.lower()}.sasl.jaas.config"] = scram
    return values


def program(install: BrokerInstall, home: Path, *, name: str = "broker") -> Program:
    """The broker in `home`, ready to be started; `prepare_storage` comes first."""
    argv = (*install.command(home), "kafka.Kafka", str(home / "server.properties"))
    return Program(name=name, argv=argv, cwd=home)


async def answers(host: str, port: int, *, seconds: float = 2.0) -> bool:
    """Whether a Kafka broker serves requests there: it is asked for its API versions, which needs no login."""
    api_versions, version, correlation, no_client_id = 18, 0, 0x48656164, -1
    question = struct.pack(">hhih", api_versions, version, correlation, no_client_id)
    try:
        async with asyncio.timeout(seconds):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(struct.pack(">i", len(question)) + question)
                head = await reader.readexactly(8)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, UnicodeError, asyncio.IncompleteReadError):  # a name that no host can have
        return False
    return bool(struct.unpack(">i", head[4:])[0] == correlation)
