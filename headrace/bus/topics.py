"""Topic and group names, and how topics are made.

A request topic is `headrace.<pool>.<lane>.<model>`; pool and lane are plain labels, the model's name is encoded, since
a model may be called anything and a topic may not. Kafka takes `.` and `_` for the same in metric names and refuses a
topic that differs from another in them alone, so the encoding never yields a `.`.
"""

import re
from typing import Literal

Lane = Literal["interactive", "batch"]

ANNOUNCEMENTS_TOPIC = "headrace.announcements"
USAGE_TOPIC = "headrace.usage"
MAX_TOPIC_LENGTH = 249
ENVELOPE_ROOM_BYTES = 1 << 20
"""What a record may hold beside the request: envelope, key, framing. Kafka's limits are raised by this much."""
LARGEST_ANNOUNCEMENT_BYTES = 2 << 20
"""A description with a very large model config, and what stands beside it."""
LARGEST_USAGE_BYTES = 1 << 20
"""A report; what is more goes into the next one."""

_PLAIN = re.compile(r"[A-Za-z0-9_]+|.", re.DOTALL)
_ENCODED = re.compile(r"[A-Za-z0-9_]+|--|(?:-[0-9A-F]{2})+")


class UnnameableModelError(ValueError):
    """The model's name is empty, or too long to be part of a topic name."""


def encode_model(model: str) -> str:
    """A model's name as part of a topic name: `-` becomes `--`, anything but `A-Za-z0-9_` becomes `-XX` a byte."""

    def encoded(match: re.Match[str]) -> str:
        text = match[0]
        if text == "-":
            return "--"
        if text.isascii() and (text.isalnum() or "_" in text):
            return text
        return "".join(f"-{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))

    return _PLAIN.sub(encoded, model)


def decode_model(encoded: str) -> str | None:
    """The model's name that `encode_model` encoded; None where the text is not its work."""
    parts = _ENCODED.findall(encoded)
    if "".join(parts) != encoded or not encoded:
        return None
    raw = b"".join(
        b"-" if part == "--" else bytes.fromhex(part.replace("-", "")) if part[0] == "-" else part.encode()
        for part in parts
    )
    try:
        model = raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return None
    return model if encode_model(model) == encoded else None


def request_topic(pool: str, lane: Lane, model: str) -> str:
    """The topic that holds a model's calls. Raises UnnameableModelError."""
    topic = f"headrace.{pool}.{lane}.{encode_model(model)}"
    if not model or len(topic) > MAX_TOPIC_LENGTH:
        raise UnnameableModelError(
            f"a model's name has 1 to about {MAX_TOPIC_LENGTH - 30} bytes, this one can't be used"
        )
    return topic


def model_of(topic: str, pool: str, lane: Lane) -> str | None:
    """The model whose calls a topic holds; None for any topic that is not of this pool and lane."""
    prefix = f"headrace.{pool}.{lane}."
    return decode_model(topic[len(prefix) :]) if topic.startswith(prefix) else None


def consumer_group(pool: str, lane: Lane) -> str:
    """The consumer group of a pool's routers."""
    return f"headrace.{pool}.{lane}"
