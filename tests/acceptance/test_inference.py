"""Stock clients call every model through the whole system, with nothing new to them but the key."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.acceptance.calls import Client, held, simple, sums
from tests.acceptance.stack import KEY, Stack

HEADERS = {"authorization": f"Bearer {KEY}"}
SECONDS = 60.0


@pytest.fixture
def sync_client(stack: Stack) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(stack.grpc) as client:
        yield client


@pytest.fixture
async def aio_client(stack: Stack) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(stack.grpc) as client:
        yield client


def tensor(name: str, values: npt.ArrayLike, datatype: str) -> triton.InferInput:
    array = np.asarray(values, np.object_ if datatype == "BYTES" else triton.triton_to_np_dtype(datatype))
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def row(value: int) -> list[triton.InferInput]:
    ones = np.full((1, 16), value, np.int32)
    return [tensor("INPUT0", np.arange(16).reshape(1, 16), "INT32"), tensor("INPUT1", ones, "INT32")]


def test_tritons_own_example_runs_with_only_the_key_added(stack: Stack) -> None:
    """The steps of Triton's `simple_grpc_infer_client.py`, against the gateway."""
    triton_client = triton.InferenceServerClient(url=stack.grpc, verbose=False)
    inputs = [triton.InferInput("INPUT0", [1, 16], "INT32"), triton.InferInput("INPUT1", [1, 16], "INT32")]
    input0_data = np.expand_dims(np.arange(start=0, stop=16, dtype=np.int32), axis=0)
    input1_data = np.ones(shape=(1, 16), dtype=np.int32)
    inputs[0].set_data_from_numpy(input0_data)
    inputs[1].set_data_from_numpy(input1_data)
    outputs = [triton.InferRequestedOutput("OUTPUT0"), triton.InferRequestedOutput("OUTPUT1")]

    results = triton_client.infer(
        model_name="simple", inputs=inputs, outputs=outputs, client_timeout=SECONDS, headers={"x-api-key": KEY}
    )
    statistics = triton_client.get_inference_statistics(model_name="simple", headers={"x-api-key": KEY})
    triton_client.close()

    np.testing.assert_array_equal(results.as_numpy("OUTPUT0"), input0_data + input1_data)
    np.testing.assert_array_equal(results.as_numpy("OUTPUT1"), input0_data - input1_data)
    assert len(statistics.model_stats) == 1


def test_a_file_is_recognised(sync_client: triton.InferenceServerClient) -> None:
    content = Path(__file__).read_bytes()

    result = sync_client.infer(
        "file_type", [tensor("CONTENT", [[content]], "BYTES")], headers=HEADERS, client_timeout=SECONDS
    )

    assert result.as_numpy("LABEL").tolist() == [[b"python"]]
    assert result.as_numpy("MIME_TYPE").tolist() == [[b"text/x-python"]]
    assert 0.5 < result.as_numpy("SCORE").item() <= 1


async def test_texts_of_one_meaning_are_near_each_other(aio_client: triton_aio.InferenceServerClient) -> None:
    texts = [["a dog runs in the park"], ["a puppy plays outside"], ["interest rates rose again"]]

    result = await aio_client.infer(
        "text_embedding", [tensor("TEXT", [[text.encode()] for (text,) in texts], "BYTES")], headers=HEADERS
    )

    dog, puppy, rates = result.as_numpy("EMBEDDING")
    assert dog.shape == (256,)
    assert dog @ puppy > 2 * (dog @ rates)


def test_a_stateful_model_is_callable(sync_client: triton.InferenceServerClient) -> None:
    """Silence is no speech; the sequence id goes to Triton as any parameter does."""
    silence = [tensor("AUDIO", np.zeros((1, 512)), "FP32")]

    result = sync_client.infer(
        "voice_activity", silence, sequence_id=42, sequence_start=True, sequence_end=True, headers=HEADERS
    )

    assert 0 <= result.as_numpy("PROBABILITY").item() < 0.2


async def test_many_calls_at_once_each_get_their_own_answer(aio_client: triton_aio.InferenceServerClient) -> None:
    async def call(value: int) -> int:
        result = await aio_client.infer("simple", row(value), headers=HEADERS, client_timeout=SECONDS)
        return int(result.as_numpy("OUTPUT0")[0][0])

    assert await asyncio.gather(*map(call, range(400))) == list(range(400))


@pytest.mark.parametrize("request_id", ["", "7", "水車 — ταχύ 🌊", "x" * 10_000])
def test_the_clients_own_id_comes_back(gateway: Client, request_id: str) -> None:
    assert gateway.infer(simple(id=request_id)).id == request_id


def test_calls_with_the_same_id_at_the_same_time_are_not_mixed_up(gateway: Client) -> None:
    calls = [gateway.begin(simple(value=value, id="same")) for value in range(50)]

    assert [sums(call.result())[0] for call in calls] == list(range(50))


def test_an_empty_version_is_the_newest_and_a_number_is_taken(gateway: Client) -> None:
    for version in ("", "1"):
        assert gateway.infer(simple(model_version=version)).model_version == "1"


@pytest.mark.parametrize("version", ["7", "latest", "-1", "999999999999999999999"])
def test_a_version_is_triton_s_to_judge(sync_client: triton.InferenceServerClient, stack: Stack, version: str) -> None:
    """The code and the text for a version that there is not are those of Triton, called directly."""
    with pytest.raises(InferenceServerException) as through:
        sync_client.infer("simple", row(1), model_version=version, headers=HEADERS)
    with triton.InferenceServerClient(stack.triton) as direct, pytest.raises(InferenceServerException) as straight:
        direct.infer("simple", row(1), model_version=version)

    assert (through.value.status(), through.value.message()) == (straight.value.status(), straight.value.message())


def test_outputs_come_in_the_order_that_was_asked_for(gateway: Client) -> None:
    request = simple()
    request.outputs.add(name="OUTPUT1")
    request.outputs.add(name="OUTPUT0")

    response = gateway.infer(request)

    direct = [output.name for output in response.outputs]
    assert sorted(direct) == ["OUTPUT0", "OUTPUT1"]
    assert len(response.raw_output_contents) == 2


def test_parameters_go_to_triton(gateway: Client, triton: Client) -> None:
    """A request with a timeout of Triton's own, and one that Triton refuses, end as with Triton itself."""
    request = simple()
    request.parameters["priority"].uint64_param = 0
    request.parameters["mine"].string_param = "ünïcode"

    assert gateway.infer(request) == triton.infer(request)


def test_an_answer_has_the_bytes_that_triton_gives(gateway: Client, triton: Client) -> None:
    request = simple(value=-5, id="same bytes").SerializeToString()

    assert gateway.send("ModelInfer", request) == triton.send("ModelInfer", request)


def test_a_slow_model_does_not_hold_up_the_others(gateway: Client, tmp_path: Path) -> None:
    """With the window of `slow` full and more of its calls in the queue, another model answers as ever."""
    release = tmp_path / "release"
    calls = [gateway.begin(held(release), seconds=100) for _ in range(6)]

    try:
        # Held up by `slow`, they would have no answer before it is released, however long that takes.
        quick = [gateway.infer(simple(value=value), seconds=30) for value in range(20)]

        assert [sums(answer)[0] for answer in quick] == list(range(20))
        assert not any(call.done() for call in calls)
    finally:
        release.touch()
    assert all(call.result() for call in calls)
