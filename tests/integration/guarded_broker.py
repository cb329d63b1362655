"""A real broker that knows everybody by name and allows what the manifests allow: their topics, users and rights."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its stubs mark nothing as exported
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)

from headrace.local import broker as kafka
from headrace.local.ports import FreePorts
from tests.acceptance.eventually import eventually
from tests.integration.broker_fixture import started_broker
from tests.manifests.rendering import Json

OPERATOR = "operator"
"""May everything, as Strimzi's operators may: it makes topics and rights."""
SECONDS = 20.0

_SUPER_USERS = (OPERATOR, "headrace-broker", "ANONYMOUS")
"""The nameless one is the broker to its own controller: its clients' port lets nobody in without a password."""
_SETTINGS = f"""\
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=false
super.users={";".join(f"User:{name}" for name in _SUPER_USERS)}
"""
_LOG = """\
logger.rights.name = kafka.authorizer.logger
logger.rights.level = DEBUG
"""
_DECIDED = re.compile(
    r"Principal = User:(?P<user>\S+) is (?P<verdict>Allowed|Denied) operation = (?P<operation>\w+) from host = \S+"
    r" on resource = (?P<kind>\w+):LITERAL:(?P<name>\S+) for request = (?P<request>\w+)"
)


class Decision(NamedTuple):
    """What the broker was asked for, and its answer."""

    user: str
    allowed: bool
    operation: str
    kind: str
    name: str
    request: str


class Right(NamedTuple):
    """One operation of one entry of a user's list, as Strimzi's simple authorization means it."""

    user: str
    operation: str
    kind: str
    name: str
    pattern: str
    host: str
    verdict: str

    def covers(self, decision: Decision) -> bool:
        """Whether it speaks of what was asked for."""
        named = decision.name.startswith(self.name) if self.pattern == "prefix" else decision.name == self.name
        return named and (self.user, self.operation, self.kind) == (decision.user, decision.operation, decision.kind)


@dataclass(frozen=True)
class GuardedBroker:
    """The broker, and how each user logs in."""

    address: str
    home: Path
    rights: Sequence[Right]

    def environment(self, user: str) -> dict[str, str]:
        """The settings of a process of ours, with production's way of sharing partitions and of making no topics."""
        return {
            "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": self.address,
            "HEADRACE_KAFKA__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "HEADRACE_KAFKA__SASL_MECHANISM": "PLAIN",
            "HEADRACE_KAFKA__SASL_USERNAME": user,
            "HEADRACE_KAFKA__SASL_PASSWORD_FILE": str(self._password_file(user)),
            "HEADRACE_KAFKA__GROUP_PROTOCOL": "consumer",
            "HEADRACE_TOPICS__CREATE": "false",
        }

    def client(self, user: str) -> dict[str, Any]:  # Any: librdkafka's properties
        """The login for a client that is none of ours."""
        return {
            "bootstrap.servers": self.address,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": user,
            "sasl.password": _password(user),
            "allow.auto.create.topics": False,
            "log_level": 0,
        }

    def decisions(self) -> list[Decision]:
        """What it has decided of these users until now."""
        with (self.home / "broker.log").open(encoding="utf-8", errors="replace") as log:
            found = [each for each in map(_DECIDED.search, log) if each is not None]
        return [
            Decision(
                each["user"],
                each["verdict"] == "Allowed",
                each["operation"],
                each["kind"].upper(),
                each["name"],
                each["request"],
            )
            for each in found
            if each["user"] not in _SUPER_USERS
        ]

    def _password_file(self, user: str) -> Path:
        path = self.home / f"{user}.password"
        path.write_text(_password(user), encoding="utf-8")
        return path


@contextmanager
def guarded_broker(
    install: kafka.BrokerInstall, home: Path, *, topics: Sequence[Json], users: Sequence[Json]
) -> Iterator[GuardedBroker]:
    """A broker with what these KafkaTopics and KafkaUsers ask for. Users log in by password instead of certificate."""
    names = [OPERATOR, *(user["metadata"]["name"] for user in users)]
    ports = FreePorts("127.0.0.1")
    port = ports.take()
    sasl = kafka.Sasl(mechanisms=("PLAIN",), users={name: _password(name) for name in names})
    kafka.prepare_storage(install, home, port=port, controller_port=ports.take(), sasl=sasl)
    for file, more in (("server.properties", _SETTINGS), ("log4j2.properties", _LOG)):
        with (home / file).open("a", encoding="utf-8") as known:
            known.write(more)
    rights = [right for user in users for right in rights_of(user)]
    broker = GuardedBroker(f"127.0.0.1:{port}", home, rights)
    with started_broker(install, home, port):
        admin = AdminClient(broker.client(OPERATOR))
        made = admin.create_topics([_topic(each) for each in topics], operation_timeout=SECONDS)
        granted = admin.create_acls([_binding(right) for right in rights])
        for done in (*made.values(), *granted.values()):
            done.result(SECONDS)
        # The broker that lets clients in hears of it later than the controller, which has answered.
        eventually(
            lambda: len(admin.describe_acls(_ANY).result(SECONDS)) == len(rights), seconds=SECONDS, what="rights"
        )
        yield broker


def rights_of(user: Json) -> Iterator[Right]:
    """What a KafkaUser's `simple` authorization grants, with Strimzi's defaults."""
    assert user["spec"]["authorization"]["type"] == "simple"
    for acl in user["spec"]["authorization"]["acls"]:
        resource = acl["resource"]
        for operation in acl["operations"]:
            yield Right(
                user["metadata"]["name"],
                re.sub(r"(?<!^)(?=[A-Z])", "_", operation).upper(),
                _KINDS[resource["type"]],
                resource.get("name", "kafka-cluster"),
                resource.get("patternType", "literal"),
                acl.get("host", "*"),
                acl.get("type", "allow"),
            )


_KINDS = {"topic": "TOPIC", "group": "GROUP", "cluster": "CLUSTER", "transactionalId": "TRANSACTIONAL_ID"}
_TYPES = {
    "TOPIC": ResourceType.TOPIC,
    "GROUP": ResourceType.GROUP,
    "CLUSTER": ResourceType.BROKER,
    "TRANSACTIONAL_ID": ResourceType.TRANSACTIONAL_ID,
}
_ANY = AclBindingFilter(  # its stubs allow no None, which stands for any
    ResourceType.ANY,
    None,  # type: ignore[arg-type]
    ResourcePatternType.ANY,
    None,  # type: ignore[arg-type]
    None,  # type: ignore[arg-type]
    AclOperation.ANY,
    AclPermissionType.ANY,
)
_PATTERNS = {"literal": ResourcePatternType.LITERAL, "prefix": ResourcePatternType.PREFIXED}


def _binding(right: Right) -> AclBinding:
    return AclBinding(
        _TYPES[right.kind],
        right.name,
        _PATTERNS[right.pattern],
        f"User:{right.user}",
        right.host,
        AclOperation[right.operation],
        AclPermissionType[right.verdict.upper()],
    )


def _topic(topic: Json) -> NewTopic:
    spec = topic["spec"]
    config = {name: str(value) for name, value in spec["config"].items()}
    # One copy: there is one broker.
    name = spec.get("topicName", topic["metadata"]["name"])
    return NewTopic(name, num_partitions=spec["partitions"], replication_factor=1, config=config)


def _password(user: str) -> str:
    return f"{user}-password"
