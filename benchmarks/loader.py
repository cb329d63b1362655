"""The load generator's process: keeps N calls in flight until M are answered, and checks the answers.

Reads one JSON object a line from standard input and answers each with one: `prepare` opens a fresh channel, proves that
an answer is right and warms up; `run` measures; `offer` makes calls at a rate, whatever becomes of them.
It is its own process so that its CPU time is nobody else's.
Bytes go out and come in raw; a sample of the answers is parsed and compared.
"""

import asyncio
import contextlib
import gc
import json
import math
import random
import sys
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc.aio
import uvloop
from google.rpc import error_details_pb2, status_pb2
from tritonclient.grpc import service_pb2

from benchmarks.peers import METHOD

_TENSORS = 8  # different payloads, so that an answer that went to the wrong call shows
_MOST_OFFERED = 2000
"""Calls under way at a time that are offered at a rate."""
_OFFER_SECONDS = 10.0
_CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class WrongAnswerError(Exception):
    """An answer is not the one that its request must have."""


def _payload(floats: int, seed: int) -> tuple[bytes, bytes]:
    tensor = array("f", random.Random(seed).choices(range(1_000_000), k=floats)).tobytes()  # noqa: S311
    request = service_pb2.ModelInferRequest(model_name="copy", raw_input_contents=[tensor])
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[floats])
    return request.SerializeToString(), tensor


def _compare(answer: bytes, tensor: bytes) -> None:
    response = service_pb2.ModelInferResponse.FromString(answer)
    if list(response.raw_output_contents) != [tensor]:
        raise WrongAnswerError(f"an answer of {len(answer)} bytes lacks the {len(tensor)} bytes that were sent")


class Load:
    """One target under load: a channel, the payloads, and what an answer must look like."""

    def __init__(
        self,
        *,
        address: str,
        metadata: list[list[str]],
        floats: int,
        in_flight: int,
        check_every: int,
        may_refuse: bool,
    ) -> None:
        """Connect lazily; `check_every` says how often an answer is compared byte by byte.

        With `may_refuse`, RESOURCE_EXHAUSTED counts as an answer: for loads that ask for more than a server may hold.
        """
        self._channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(METHOD)
        self._metadata = tuple((key, value) for key, value in metadata)
        self._payloads = [_payload(floats, seed) for seed in range(_TENSORS)]
        self._in_flight = in_flight
        self._check_every = check_every
        self._answer_bytes = 0
        self._may_refuse = may_refuse
        self.checked = 0
        self.refused = 0

    async def probe(self) -> None:
        """Make one call and learn the length of an answer from it."""
        request, tensor = self._payloads[0]
        answer = await self._call(request, metadata=self._metadata, timeout=30, wait_for_ready=True)
        _compare(answer, tensor)
        self._answer_bytes = len(answer)

    async def run(self, calls: int) -> list[int]:
        """Keep `in_flight` calls going until `calls` are answered; gives their latencies in nanoseconds.

        The first call that fails ends the run with its error: a benchmark with failures measures something else.
        """
        latencies: list[int] = []
        numbers = iter(range(calls))
        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._in_flight, calls)):
                group.create_task(self._one_after_another(numbers, latencies))
        return latencies

    async def _one_after_another(self, numbers: Iterator[int], latencies: list[int]) -> None:
        call, metadata, payloads, clock = self._call, self._metadata, self._payloads, time.perf_counter_ns
        for number in numbers:
            request, tensor = payloads[number % _TENSORS]
            begun = clock()
            try:
                answer = await call(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if not self._may_refuse or error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                self.refused += 1
                continue
            latencies.append(clock() - begun)
            if len(answer) != self._answer_bytes:
                raise WrongAnswerError(f"an answer has {len(answer)} bytes instead of {self._answer_bytes}")
            if number % self._check_every == 0:
                _compare(answer, tensor)
                self.checked += 1

    async def offer(self, rate: float, seconds: float) -> "Offer":
        """Offer calls at a rate, whatever becomes of them: the next one never waits for those before it."""
        offered = Offer(seconds)
        begun, count = time.perf_counter(), max(1, round(rate * seconds))
        under_way: set[asyncio.Task[None]] = set()
        for number in range(count):
            due = begun + number / rate
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)  # the pace that was asked for
            if len(under_way) >= _MOST_OFFERED:
                offered.unsent += 1
                continue
            task = asyncio.create_task(self._offered(offered, number, begun, due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        if under_way:
            await asyncio.wait(under_way)
        if offered.failed:
            raise OfferFailedError(offered.failed)
        return offered

    async def _offered(self, offered: "Offer", number: int, begun: float, due: float) -> None:
        request, tensor = self._payloads[number % _TENSORS]
        try:
            answer = await self._call(request, metadata=self._metadata, timeout=_OFFER_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                offered.refused[_reason(error)] += 1
            else:
                offered.failed = _plain(error)
            return
        done = time.perf_counter()
        offered.accepted[min(int(due - begun), len(offered.accepted) - 1)] += 1
        offered.latencies.append(int((done - due) * 1e9))
        if number % self._check_every == 0:
            _compare(answer, tensor)
            self.checked += 1

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


class OfferFailedError(Exception):
    """A call that was offered was neither answered nor refused as too much."""


class Offer:
    """What became of calls that were offered at a rate."""

    def __init__(self, seconds: float) -> None:
        self.accepted = [0] * max(1, math.ceil(seconds))
        """By the second in which they were due."""
        self.refused: Counter[str] = Counter()
        self.unsent = 0
        """Calls that were due while the most that may be under way were."""
        self.latencies: list[int] = []
        """From when a call was due, in nanoseconds."""
        self.failed = ""


def _reason(error: grpc.aio.AioRpcError) -> str:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info.reason
    return error.code().name


def _percentile(ordered: list[int], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6 if ordered else 0.0


async def _prepare(line: dict[str, Any]) -> Load:
    warm_up = line.pop("warm_up")
    load = Load(**line)
    try:
        await load.probe()
        await load.run(warm_up)
    except BaseException:
        await load.close()
        raise
    gc.collect()
    return load


async def _measure(load: Load, line: dict[str, Any]) -> dict[str, Any]:
    load.checked = load.refused = 0
    begun = time.perf_counter()
    latencies = await load.run(line["calls"])
    seconds = time.perf_counter() - begun
    ordered = sorted(latencies)
    return {
        "seconds": seconds,
        "p50_ms": _percentile(ordered, 0.50),
        "p99_ms": _percentile(ordered, 0.99),
        "max_ms": _percentile(ordered, 1.0),
        "checked": load.checked,
        "refused": load.refused,
    }


async def _offer(load: Load, line: dict[str, Any]) -> dict[str, Any]:
    load.checked = 0
    offered = await load.offer(line["rate"], line["seconds"])
    ordered = sorted(offered.latencies)
    return {
        "accepted": offered.accepted,
        "refused": offered.refused,
        "unsent": offered.unsent,
        "p50_ms": _percentile(ordered, 0.50),
        "p99_ms": _percentile(ordered, 0.99),
        "max_ms": _percentile(ordered, 1.0),
        "checked": load.checked,
    }


def _plain(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return _plain(error.exceptions[0])
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    load: Load | None = None
    async with contextlib.AsyncExitStack() as owned:
        while raw := await reader.readline():
            line = json.loads(raw)
            limit = line.pop("within_seconds")
            answer: dict[str, Any] = {"ok": True}
            try:
                async with asyncio.timeout(limit):
                    do = line.pop("do")
                    if do == "prepare":
                        await owned.aclose()
                        load = await _prepare(line)
                        owned.push_async_callback(load.close)
                    else:
                        assert load is not None, "prepare comes first"  # noqa: S101
                        answer |= await (_measure if do == "run" else _offer)(load, line)
            except Exception as error:  # noqa: BLE001  the boundary: the parent decides what a failed run means
                answer = {"ok": False, "error": _plain(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(_serve())
