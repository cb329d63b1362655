"""Adds up what several model servers counted for the same models."""

from collections.abc import Iterable

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as oip

_DURATION = oip.StatisticDuration.DESCRIPTOR


def summed(told: Iterable[oip.ModelStatistics]) -> list[oip.ModelStatistics]:
    """One entry for each model and version, in the order in which they first came.

    Counts and times are added, the last inference is the latest, batches are added by their size, responses by their
    key, memory by its kind and number.
    """
    totals: dict[tuple[str, str], oip.ModelStatistics] = {}
    for each in told:
        total = totals.get((each.name, each.version))
        if total is None:
            total = totals[each.name, each.version] = oip.ModelStatistics()
            total.CopyFrom(each)
        else:
            _add(total, each)
    return list(totals.values())


def mean_seconds(told: Iterable[bytes]) -> float:
    """How long a model's calls have been with the model server on average; 0 where none was answered yet.

    `told` holds serialised `inference.ModelStatisticsResponse`s.
    """
    count = nanoseconds = 0
    for each in told:
        for version in oip.ModelStatisticsResponse.FromString(each).model_stats:
            count += version.inference_stats.success.count
            nanoseconds += version.inference_stats.success.ns
    return nanoseconds / count / 1e9 if count else 0.0


def _add(total: oip.ModelStatistics, each: oip.ModelStatistics) -> None:
    total.last_inference = max(total.last_inference, each.last_inference)
    total.inference_count += each.inference_count
    total.execution_count += each.execution_count
    _add_durations(total.inference_stats, each.inference_stats)
    batches = {batch.batch_size: batch for batch in total.batch_stats}
    for batch in each.batch_stats:
        _add_durations(batches.get(batch.batch_size) or total.batch_stats.add(batch_size=batch.batch_size), batch)
    memories = {(memory.type, memory.id): memory for memory in total.memory_usage}
    for memory in each.memory_usage:
        known = memories.get((memory.type, memory.id)) or total.memory_usage.add(type=memory.type, id=memory.id)
        known.byte_size += memory.byte_size
    for key, responses in each.response_stats.items():
        _add_durations(total.response_stats[key], responses)


def _add_durations(total: Message, each: Message) -> None:
    for field, value in each.ListFields():
        if field.message_type is _DURATION:
            known = getattr(total, field.name)
            known.count += value.count
            known.ns += value.ns
