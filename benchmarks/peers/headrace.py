"""Headrace in front of the same Triton: `headrace up`, or a stack that already runs."""

import asyncio
import json
import shutil
import sys
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
from tritonclient.grpc import service_pb2

from benchmarks.children import ChildFailedError, child, free_port
from benchmarks.peers import METHOD, Peer
from headrace.local import state
from headrace.local.jars import KAFKA_VERSION

STATE = "headrace"
"""The state folder of its stack, in the scratch folder."""
_KEY = "benchmark"
_FIRST_ANSWER_SECONDS = 30.0
_NOT_YET = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)  # no router, or no model, announced so far
_START_SECONDS = 120.0  # the first start fetches the broker
RELAY = ("gateway", "router")


def attached(*, address: str, key: str, pids: Mapping[str, int], triton: Peer) -> Peer:
    """Describe a stack that somebody else started and stops; it must stand in front of `triton`."""
    return Peer(
        name="Headrace",
        address=address,
        processes={**triton.processes, **pids},
        relay=RELAY,
        metadata=(("authorization", f"Bearer {key}"),),
    )


@asynccontextmanager
async def start(build: Path, triton: Peer) -> AsyncIterator[Peer]:
    """Run `headrace up` in front of Triton until the body is left; everything as a user gets it.

    Each start is a first one: what an earlier stack left in the log is no part of a measurement.
    """
    log, state_dir, port = build / "logs" / "headrace.log", build / STATE, free_port()
    shutil.rmtree(state_dir, ignore_errors=True)
    argv = [
        str(Path(sys.executable).with_name("headrace")),
        "up",
        "--json",
        *("--triton", triton.address),
        *("--grpc-port", str(port)),
        *("--http-port", str(free_port())),
        *("--admin-port", str(free_port())),
        *("--state-dir", str(state_dir)),
        *("--api-key", _KEY),
    ]
    async with child(argv, log=log, pipes=True) as process:
        begun = time.monotonic()
        await _ready(process, log)
        ready = time.monotonic()
        await answers(f"127.0.0.1:{port}", key=_KEY)
        first_answer = time.monotonic()
        rest = asyncio.create_task(_drain(process), name="drain headrace up")
        try:
            peer = attached(address=f"127.0.0.1:{port}", key=_KEY, pids=running(state_dir), triton=triton)
            seconds = f"{ready - begun:.1f} s to ready, {first_answer - begun:.1f} s to the first answer"
            yield replace(peer, about={"Apache Kafka": KAFKA_VERSION, "headrace up": seconds})
        finally:
            rest.cancel()


async def _ready(process: Process, log: Path) -> None:
    assert process.stdout is not None  # noqa: S101  it was asked for as a pipe
    try:
        async with asyncio.timeout(_START_SECONDS):
            while raw := await process.stdout.readline():
                if json.loads(raw).get("ready") is True:
                    return
    except TimeoutError:
        raise ChildFailedError(f"`headrace up` was not ready after {_START_SECONDS:.0f} s; see {log}") from None
    raise ChildFailedError(f"`headrace up` ended before it was ready; see {log}")


async def answers(address: str, *, key: str) -> None:
    """Wait for the first answer of a gateway: it is ready when its parts are, the model a moment later.

    Raises:
        ChildFailedError: it refuses the call, or did not answer within half a minute.
    """
    request = service_pb2.ModelInferRequest(model_name="copy", raw_input_contents=[bytes(4)])
    request.inputs.add(name="INPUT0", datatype="FP32", shape=[1])
    metadata = (("authorization", f"Bearer {key}"),)
    try:
        async with asyncio.timeout(_FIRST_ANSWER_SECONDS), grpc.aio.insecure_channel(address) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
            while True:
                try:
                    await call(request.SerializeToString(), metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    if error.code() not in _NOT_YET:
                        raise ChildFailedError(f"Headrace's first call failed: {error.details()}") from None
                    await asyncio.sleep(0.05)  # it names no moment to try again
                else:
                    return
    except TimeoutError:
        raise ChildFailedError(f"Headrace has not answered {_FIRST_ANSWER_SECONDS:.0f} s after it was ready") from None


async def _drain(process: Process) -> None:
    """Read on, so that `up` never waits for its reader."""
    assert process.stdout is not None  # noqa: S101  it was asked for as a pipe
    while await process.stdout.readline():
        pass


def running(state_dir: Path) -> dict[str, int]:
    """Look up the process of each component of the stack with this state folder: one gateway, one router.

    Raises:
        ChildFailedError: no stack with both runs there.
    """
    described = state.described(state_dir)
    components = described.components if described else []
    pids = {one.name.partition("-")[0]: one.pid for one in components if one.pid is not None}
    if not {*RELAY, "broker"} <= pids.keys():
        raise ChildFailedError(f"no stack with a gateway, a router and a broker runs with the state folder {state_dir}")
    return {name: pids[name] for name in (*RELAY, "broker")}
