"""How the broker is reached, for both ends of the request log, and what it says of itself."""

import logging
from typing import Any

from confluent_kafka import KafkaError

from headrace.bus.settings import KafkaSettings
from headrace.runtime.settings import read_secret

_log = logging.getLogger(__name__)


def client_config(kafka: KafkaSettings, client_id: str) -> dict[str, Any]:  # Any: librdkafka's properties
    """What librdkafka's clients take, from the settings."""
    config: dict[str, Any] = {
        "error_cb": _heard,
        "bootstrap.servers": kafka.bootstrap_servers,
        "client.id": client_id,
        "security.protocol": kafka.security_protocol,
        # A broker that restarts must be found again as soon as it is back.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 500,
        "socket.keepalive.enable": True,
        # librdkafka would say each failed attempt to connect; `_heard` says once that the broker is away.
        "log_level": 2,
        "allow.auto.create.topics": False,
    }
    optional = {
        "ssl.ca.location": kafka.ssl_ca_file,
        "ssl.certificate.location": kafka.ssl_certificate_file,
        "ssl.key.location": kafka.ssl_key_file,
        "sasl.mechanism": kafka.sasl_mechanism,
        "sasl.username": kafka.sasl_username,
        "sasl.password": kafka.sasl_password_file and read_secret(kafka.sasl_password_file),
    }
    return config | {name: str(value) for name, value in optional.items() if value is not None}


def _heard(error: KafkaError) -> None:
    """What a client says of the cluster as a whole, beside what single records and partitions report."""
    # Every single attempt to reach an absent broker is an error too; that all are away is said once.
    if error.code() != KafkaError._TRANSPORT:  # noqa: SLF001  librdkafka's local codes are spelled so
        extra = {"event": "broker_trouble", "code": error.name(), "why": error.str()}
        _log.log(logging.ERROR if error.fatal() else logging.WARNING, "the broker: %s", error.str(), extra=extra)
