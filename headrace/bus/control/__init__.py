"""Everything slow and asyncio-shaped that we ask of the broker. The only user of aiokafka.

`client` is how the broker is reached, `topics` makes topics, `announcements` and `usage` are carriers. Upgrading the
client: run the contract suites of announcements, topics and usage, and the tests of the broker's login.
"""

from headrace.bus.control.announcements import KafkaAnnouncements
from headrace.bus.control.client import until_entered, wait_for_broker
from headrace.bus.control.topics import TopicMissingError, TopicRefusedError, Topics, until_own_topics
from headrace.bus.control.usage import KafkaUsage

__all__ = [
    "KafkaAnnouncements",
    "KafkaUsage",
    "TopicMissingError",
    "TopicRefusedError",
    "Topics",
    "until_entered",
    "until_own_topics",
    "wait_for_broker",
]
