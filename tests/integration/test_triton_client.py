"""Whose word a status is, Triton's or our own channel's: it decides between an answer and a lost attempt."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
import uvloop

from headrace.bus.protocols import Failure, Outcome
from headrace.bus.v1.envelope_pb2 import Metadatum
from headrace.bus.v1.reply_pb2 import ModelServerStatus
from router.triton import SERVICE, Triton, TritonAwayError
from tests.integration.triton_stand_in import Context, Methods, holding, serving

LIMIT = 1 << 20


def triton(address: str, *, call_seconds: float = 5.0) -> Triton:
    return Triton(address, max_message_bytes=LIMIT, call_seconds=call_seconds)


async def infer_once(methods: Methods, *, seconds: float = 20.0, request: bytes = b"request") -> Outcome:
    async with serving(methods) as address, triton(address) as asked:
        return await asked.infer(request, (), seconds)


async def test_bytes_go_and_come_as_they_are() -> None:
    async def reverse(request: bytes, _: Context) -> bytes:
        return request[::-1]

    assert await infer_once({"ModelInfer": reverse}, request=bytes(range(256))) == bytes(range(255, -1, -1))


async def test_a_calls_metadata_goes_along_in_its_order() -> None:
    seen: list[tuple[str, str | bytes]] = []

    async def look(_: bytes, context: Context) -> bytes:
        seen.extend((key, value) for key, value in context.invocation_metadata() or () if key.startswith("x-"))
        return b""

    metadata = [
        Metadatum(key="x-b", value=b"2"),
        Metadatum(key="x-a-bin", value=b"\x00\xff"),
        Metadatum(key="x-b", value=b"1"),
    ]
    async with serving({"ModelInfer": look}) as address, triton(address) as asked:
        await asked.infer(b"", metadata, 20.0)

    assert [entry for entry in seen if entry[0] == "x-b"] == [("x-b", "2"), ("x-b", "1")]
    assert ("x-a-bin", b"\x00\xff") in seen


async def test_the_remaining_time_is_tritons_deadline() -> None:
    remaining: list[float | None] = []

    async def look(_: bytes, context: Context) -> bytes:
        remaining.append(context.time_remaining())
        return b""

    await infer_once({"ModelInfer": look}, seconds=100.0)

    assert remaining[0] is not None
    assert 70 < remaining[0] < 102  # gRPC rounds it up on its way


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_tritons_own_status_is_an_answer_whatever_its_code(code: grpc.StatusCode) -> None:
    """UNAVAILABLE is what Triton says of a full queue, and what our channel says of a dead Triton."""

    async def refuse(_: bytes, context: Context) -> bytes:
        await context.abort(code, "in Triton's wörds", (("x-k", "v"), ("x-b-bin", b"\x00\xff")))
        raise AssertionError

    assert await infer_once({"ModelInfer": refuse}) == ModelServerStatus(
        code=code.value[0],
        message="in Triton's wörds",
        trailing_metadata=[Metadatum(key="x-k", value=b"v"), Metadatum(key="x-b-bin", value=b"\x00\xff")],
    )


async def test_a_method_that_triton_does_not_have_is_its_own_word() -> None:
    outcome = await infer_once({})

    assert isinstance(outcome, ModelServerStatus)
    assert outcome.code == grpc.StatusCode.UNIMPLEMENTED.value[0]


async def test_nobody_at_the_port_is_a_lost_attempt() -> None:
    async with serving({}) as address:
        pass
    async with triton(address) as asked:
        assert await asked.infer(b"", (), 20.0) is Failure.TRITON_LOST


@pytest.mark.parametrize("calls", [1, 8])
async def test_a_triton_that_dies_loses_every_call_that_it_held(calls: int) -> None:
    """Whichever of them comes first: the end of the calls, or the end of the connection."""
    with holding() as holder:
        async with triton(holder.address) as asked:
            running = [asyncio.create_task(asked.infer(b"", (), 30.0)) for _ in range(calls)]
            await holder.began(calls)

            holder.process.kill()
            assert await asyncio.gather(*running) == [Failure.TRITON_LOST] * calls


async def test_a_restarted_triton_is_asked_again() -> None:
    async def answer(_: bytes, __: Context) -> bytes:
        return b"answer"

    async with serving({"ModelInfer": answer}) as address, triton(address) as asked:
        assert await asked.infer(b"", (), 20.0) == b"answer"
        port = int(address.rpartition(":")[2])
    async with triton(address) as asked:
        assert await asked.infer(b"", (), 20.0) is Failure.TRITON_LOST
        async with serving({"ModelInfer": answer}, port):
            async with asyncio.timeout(30):
                while (outcome := await asked.infer(b"", (), 20.0)) is Failure.TRITON_LOST:  # noqa: ASYNC110  no event tells
                    await asyncio.sleep(0.02)  # the channel's own pace of connecting again
            assert outcome == b"answer"


@pytest.mark.parametrize("size", [LIMIT + 1, LIMIT + (2 << 20)])
async def test_an_answer_over_the_limit_is_told_at_once(size: int) -> None:
    async def large(_: bytes, __: Context) -> bytes:
        return bytes(size)

    assert await infer_once({"ModelInfer": large}) is Failure.ANSWER_TOO_LARGE


async def test_an_answer_at_the_limit_is_brought() -> None:
    async def large(_: bytes, __: Context) -> bytes:
        return bytes(LIMIT)

    assert await infer_once({"ModelInfer": large}) == bytes(LIMIT)


async def hang(_: bytes, __: Context) -> bytes:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def test_a_call_that_outlasts_its_deadline_has_expired_on_the_loop_of_production_too() -> None:
    """Its clock goes in milliseconds, and must not make of our own timer a status of Triton's."""

    async def outlast() -> list[Outcome]:
        async with serving({"ModelInfer": hang}) as address, triton(address) as asked:
            await asyncio.gather(asked.infer(b"", (), 0.2))  # connected from here on
            return await asyncio.gather(*(asked.infer(b"", (), 0.1 + number * 0.00131) for number in range(80)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert set(runner.run(outlast())) == {Failure.EXPIRED}


async def test_a_deadline_that_triton_itself_reports_is_its_answer() -> None:
    async def refuse(_: bytes, context: Context) -> bytes:
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "timeout in queue")
        raise AssertionError

    outcome = await infer_once({"ModelInfer": refuse})

    assert isinstance(outcome, ModelServerStatus)
    assert outcome.message == "timeout in queue"


async def test_cancelling_a_call_cancels_it_in_triton() -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(_: bytes, __: Context) -> bytes:
        began.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()
        raise AssertionError

    async with serving({"ModelInfer": wait}) as address, triton(address) as asked:
        call = asyncio.create_task(asked.infer(b"", (), 20.0))
        async with asyncio.timeout(30):
            await began.wait()
            call.cancel()
            await cancelled.wait()
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_an_administrative_call_is_passed_on_byte_for_byte() -> None:
    async def load(request: bytes, _: Context) -> bytes:
        return request + b"!"

    async with serving({"RepositoryModelLoad": load}) as address, triton(address) as asked:
        assert await asked.administer(SERVICE + "RepositoryModelLoad", b"\x00\xff", 5.0) == b"\x00\xff!"


async def test_questions_have_a_deadline_and_an_absent_triton_is_not_ready() -> None:
    given: list[float | None] = []

    async def hang_for(request: bytes, context: Context) -> bytes:
        given.append(context.time_remaining())
        return await hang(request, context)

    async with (
        serving({"ServerReady": hang_for, "ServerMetadata": hang_for}) as address,
        triton(address, call_seconds=0.5) as asked,
    ):
        assert not await asked.ready()
        with pytest.raises(TritonAwayError, match="ServerMetadata"):
            await asked.server_metadata()

    assert all(seconds is not None and seconds < 1.5 for seconds in given), given


@pytest.fixture(autouse=True)
async def _no_task_is_left() -> AsyncIterator[None]:
    yield
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task() and "triton" in task.get_name()]
    assert not left
