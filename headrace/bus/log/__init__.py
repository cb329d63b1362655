"""The request log over librdkafka. The only user of confluent-kafka.

`publisher` writes without ever waiting, `consumer` reads as a member of a group, `client` is how the broker is reached.
Why these settings: `docs/adr/0003-two-kafka-clients.md`, `0012` and `0023` beside it. Upgrading the client: check that
`on_delivery` still hands the record's key back, once for every record, and run the contract suite.
"""

from headrace.bus.log.consumer import KafkaConsumer
from headrace.bus.log.publisher import UNDER_WAY_BYTES, KafkaPublisher

__all__ = ["UNDER_WAY_BYTES", "KafkaConsumer", "KafkaPublisher"]
