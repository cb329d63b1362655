"""How the broker is reached, for both ends of the request log, and what it says of itself."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError

from headrace.bus.settings import KafkaSettings
from headrace.runtime.settings import read_secret

_REPEAT_SECONDS = 60.0
_log = logging.getLogger(__name__)


def client_config(kafka: KafkaSettings, client_id: str) -> dict[str, Any]:  # Any: librdkafka's properties
    """What librdkafka's clients take, from the settings."""
    config: dict[str, Any] = {
        "error_cb": Listener(),
        "bootstrap.servers": kafka.bootstrap_servers,
        "client.id": client_id,
        "security.protocol": kafka.security_protocol,
        # A broker that restarts must be found again as soon as it is back.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 500,
        "socket.keepalive.enable": True,
        # librdkafka would say each failed attempt to connect; the listener says now and then that all brokers are away.
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


class Listener:
    """Logs what one client says of the cluster as a whole, beside what single records and partitions report.

    Each kind of trouble at most once a minute: librdkafka says with every attempt to connect that all brokers are away.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said_at: dict[int, float] = {}

    def __call__(self, error: KafkaError) -> None:
        """What librdkafka calls as `error_cb`."""
        code, now = error.code(), self._clock()
        # What befalls a single connection; that all are away is an error of its own.
        if code == KafkaError._TRANSPORT:  # noqa: SLF001  librdkafka's local codes are spelled so
            return
        if not error.fatal() and now - self._said_at.get(code, -math.inf) < _REPEAT_SECONDS:
            return
        self._said_at[code] = now
        extra = {"event": "broker_trouble", "code": error.name(), "why": error.str()}
        _log.log(logging.ERROR if error.fatal() else logging.WARNING, "the broker: %s", error.str(), extra=extra)
