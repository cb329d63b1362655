"""REST through the real Envoy: with curl's bare calls, with a stock client, and side by side with Triton's own port."""

import gzip
import http.client
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import tritonclient.http as tritonhttp
from tritonclient.grpc import service_pb2 as oip
from tritonclient.utils import InferenceServerException

from tests.acceptance.calls import MODELS, client, simple
from tests.acceptance.stack import KEY, Stack
from tests.acceptance.stack_fixture import EXPIRED_KEY, GUEST_KEY, LIMITED_REST_KEY, NARROW_KEY, OBSERVER_KEY

SECONDS = 60.0
OPENAPI = Path(__file__).parents[2] / "docs" / "reference" / "openapi.json"
NUMBERS = list(range(16))
SIMPLE = {
    "inputs": [{"name": name, "datatype": "INT32", "shape": [1, 16], "data": NUMBERS} for name in ("INPUT0", "INPUT1")]
}
DATATYPES: dict[str, tuple[type, list[Any]]] = {
    "BOOL": (np.bool_, [True, False, True]),
    "UINT8": (np.uint8, [0, 1, 255]),
    "UINT16": (np.uint16, [0, 1, 65535]),
    "UINT32": (np.uint32, [0, 1, 2**32 - 1]),
    "UINT64": (np.uint64, [0, 1, 2**64 - 1]),
    "INT8": (np.int8, [-128, 0, 127]),
    "INT16": (np.int16, [-32768, 0, 32767]),
    "INT32": (np.int32, [-(2**31), 0, 2**31 - 1]),
    "INT64": (np.int64, [-(2**63), 0, 2**63 - 1]),
    "FP16": (np.float16, [-1.5, 0.0, 65504.0]),
    "FP32": (np.float32, [-1.5, 0.1, 3.4e38]),
    "FP64": (np.float64, [-1.5, 0.1, 1.7e308]),
    "BYTES": (np.object_, ["", "a", "größer 🙂 \"'\\ \n"]),
}


class Answer(NamedTuple):
    """What came back."""

    code: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:  # Any: JSON
        return json.loads(self.body)


def call(
    address: str,
    method: str,
    path: str,
    body: object = None,
    *,
    key: str | None = KEY,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Answer:
    """One HTTP call; a body that is no bytes is sent as JSON."""
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    credentials = {} if key is None else {"authorization": f"Bearer {key}"}
    connection = http.client.HTTPConnection(address, timeout=SECONDS)
    try:
        connection.request(method, path, sent, {**credentials, **headers})
        response = connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


def stock(address: str) -> tritonhttp.InferenceServerClient:
    return tritonhttp.InferenceServerClient(address, network_timeout=SECONDS, connection_timeout=SECONDS)


HEADERS: Mapping[str, str] = MappingProxyType({"authorization": f"Bearer {KEY}"})
"""For the stock client, which writes into what it is given: give it a copy."""


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/simple/ready", {"name": "simple", "ready": True}),
    ],
)
def test_health_is_told_by_the_code_and_as_kserve_reads_it(stack: Stack, path: str, told: object) -> None:
    answer = call(stack.http, "GET", path)

    assert (answer.code, answer.document) == (200, told)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/simple",
        "/v2/models/simple/versions/1",
        "/v2/models/simple/config",
        "/v2/models/simple/versions/1/config",
    ],
)
def test_documents_are_those_of_tritons_own_port(stack: Stack, path: str) -> None:
    ours, theirs = call(stack.http, "GET", path), call(stack.triton_http, "GET", path, key=None)

    assert (ours.code, theirs.code) == (200, 200)
    assert ours.headers["content-type"] == "application/json"
    assert ours.document.keys() >= theirs.document.keys()
    assert {name: ours.document[name] for name in theirs.document} == theirs.document


def test_the_server_tells_what_it_is(stack: Stack) -> None:
    ours, theirs = call(stack.http, "GET", "/v2"), call(stack.triton_http, "GET", "/v2", key=None)

    assert ours.document["version"] == theirs.document["version"]
    assert set(ours.document["extensions"]) <= set(theirs.document["extensions"])


@pytest.mark.parametrize("path", ["/v2/models/stats", "/v2/models/simple/stats", "/v2/models/simple/versions/1/stats"])
def test_statistics_have_plain_numbers(stack: Stack, path: str) -> None:
    told = call(stack.http, "GET", path)

    assert told.code == 200
    simple_ones = [each for each in told.document["model_stats"] if each["name"] == "simple"]
    assert simple_ones
    assert isinstance(simple_ones[0]["inference_stats"]["success"]["count"], int)


@pytest.mark.parametrize("body", [None, {}, {"ready": True}])
def test_the_index_is_an_array(stack: Stack, body: object) -> None:
    told = call(stack.http, "POST", "/v2/repository/index", body)

    assert told.code == 200
    assert [each["name"] for each in told.document] == MODELS


def test_models_are_loaded_and_unloaded(stack: Stack) -> None:
    path = "/v2/repository/models/recording"

    assert call(stack.http, "POST", f"{path}/unload").code == 200
    assert call(stack.http, "GET", "/v2/models/recording/ready").code == 503
    assert call(stack.http, "POST", f"{path}/load", {"parameters": {}}).code == 200
    assert call(stack.http, "GET", "/v2/models/recording/ready").code == 200


@pytest.mark.parametrize("path", ["/v2/models/simple/infer", "/v2/models/simple/versions/1/infer"])
def test_a_bare_json_call_is_answered(stack: Stack, path: str) -> None:
    told = call(stack.http, "POST", path, SIMPLE | {"id": "42"})

    assert told.code == 200
    assert told.document["id"] == "42"
    outputs = {output["name"]: output["data"] for output in told.document["outputs"]}
    assert outputs == {"OUTPUT0": [2 * n for n in NUMBERS], "OUTPUT1": [0] * 16}


def test_what_is_packed_is_unpacked_and_packed(stack: Stack) -> None:
    numbers = [number / 8 for number in range(5000)]
    body = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [5000], "data": numbers}]}
    headers = {"content-encoding": "gzip", "accept-encoding": "gzip"}

    told = call(stack.http, "POST", "/v2/models/echo/infer", gzip.compress(json.dumps(body).encode()), headers=headers)

    assert (told.code, told.headers.get("content-encoding")) == (200, "gzip"), told
    assert json.loads(gzip.decompress(told.body))["outputs"][0]["data"] == numbers


BAD: list[tuple[str, str, object, str | None, int, str]] = [
    ("GET", "/v2", None, None, 401, "KEY_MISSING"),
    ("GET", "/v2", None, "hr_no_body", 401, "KEY_INVALID"),
    ("GET", "/v2", None, EXPIRED_KEY, 401, "KEY_EXPIRED"),
    ("GET", "/v2/health/ready", None, None, 401, "KEY_MISSING"),
    ("POST", "/v2/models/simple/infer", SIMPLE, None, 401, "KEY_MISSING"),
    ("POST", "/v2/models/simple/infer", SIMPLE, OBSERVER_KEY, 403, "METHOD_FORBIDDEN"),
    ("POST", "/v2/repository/models/simple/load", None, GUEST_KEY, 403, "ROLE_REQUIRED"),
    ("POST", "/v2/repository/models/simple/unload", None, GUEST_KEY, 403, "ROLE_REQUIRED"),
    ("GET", "/v2/models/nosuch", None, KEY, 404, "MODEL_UNKNOWN"),
    ("GET", "/v2/models/nosuch/config", None, KEY, 404, "MODEL_UNKNOWN"),
    ("GET", "/v2/models/nosuch/stats", None, KEY, 404, "MODEL_UNKNOWN"),
    ("GET", "/v2/models/nosuch/ready", None, KEY, 503, "MODEL_NOT_READY"),
    ("GET", "/v2/models/echo", None, NARROW_KEY, 404, "MODEL_UNKNOWN"),
    ("POST", "/v2/models/nosuch/infer", SIMPLE, KEY, 404, "MODEL_UNKNOWN"),
    ("POST", "/v2/models/echo/infer", SIMPLE, NARROW_KEY, 404, "MODEL_UNKNOWN"),
    ("GET", "/v2/models/simple/versions/9", None, KEY, 404, "MODEL_VERSION_UNKNOWN"),
    ("GET", "/v2/models/simple/versions/x", None, KEY, 400, "MODEL_VERSION_INVALID"),
    ("POST", "/v2/models/simple/infer", b"", KEY, 400, "REST_REQUEST_INVALID"),
    ("POST", "/v2/models/simple/infer", b"{", KEY, 400, "REST_REQUEST_INVALID"),
    ("POST", "/v2/models/simple/infer", [], KEY, 400, "REST_REQUEST_INVALID"),
    ("POST", "/v2/models/simple/infer", {}, KEY, 400, "REST_REQUEST_INVALID"),
    ("POST", "/v2/repository/index", b"{", KEY, 400, "REST_REQUEST_INVALID"),
    ("POST", "/v2/repository/models/simple/load", {"parameters": []}, KEY, 400, "REST_REQUEST_INVALID"),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "key", "code", "reason"),
    BAD,
    ids=[f"{bad[5]}-{number}" for number, bad in enumerate(BAD)],
)
def test_a_refusal_has_its_code_a_text_and_a_reason(
    stack: Stack, method: str, path: str, *, body: object, key: str | None, code: int, reason: str
) -> None:
    told = call(stack.http, method, path, body, key=key)

    assert (told.code, told.headers.get("x-headrace-reason")) == (code, reason)
    assert told.document.keys() == {"error"}
    assert told.document["error"]
    assert told.headers["content-type"] == "application/json"
    assert not any(name.startswith("grpc-") for name in told.headers)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/v2/nosuch"), ("GET", "/v2/models/simple/infer"), ("DELETE", "/v2/models/simple")],
)
def test_what_is_no_path_of_ours_is_told_as_such(stack: Stack, method: str, path: str) -> None:
    told = call(stack.http, method, path)

    assert told.code == 404
    assert told.document.keys() == {"error"}


def test_tritons_own_refusals_keep_their_words(stack: Stack) -> None:
    body = {"inputs": [{"name": "NOSUCH", "datatype": "INT32", "shape": [1], "data": [1]}]}
    ours = call(stack.http, "POST", "/v2/models/simple/infer", body)
    theirs = call(stack.triton_http, "POST", "/v2/models/simple/infer", body, key=None)

    assert (ours.code, theirs.code) == (400, 400)
    assert ours.document == theirs.document


def test_what_a_model_says_may_hold_anything_that_json_must_escape(stack: Stack) -> None:
    text = 'a "quoted" \\ path'
    body = {"inputs": [{"name": "MESSAGE", "datatype": "BYTES", "shape": [1], "data": [text]}]}

    told = call(stack.http, "POST", "/v2/models/failing/infer", body)

    assert told.code == 500
    assert text in told.document["error"]


def test_a_limit_tells_when_to_come_back(stack: Stack) -> None:
    answers = [call(stack.http, "POST", "/v2/models/simple/infer", SIMPLE, key=LIMITED_REST_KEY) for _ in range(4)]

    assert answers[-1].code == 429
    assert answers[-1].headers["x-headrace-reason"] == "RATE_LIMITED"
    assert int(answers[-1].headers["retry-after"]) >= 1
    assert answers[-1].headers["x-ratelimit-limit"] == "3"
    for answered in (each for each in answers if each.code == 200):
        assert answered.headers["x-ratelimit-limit"] == "3"


def test_nothing_is_made_of_the_body_of_who_may_not_call(stack: Stack) -> None:
    """It takes its time, and is no way to learn what there is."""
    for _ in range(4):
        call(stack.http, "POST", "/v2/models/simple/infer", SIMPLE, key=LIMITED_REST_KEY)

    assert call(stack.http, "POST", "/v2/models/simple/infer", b"{", key=LIMITED_REST_KEY).code == 429
    assert call(stack.http, "POST", "/v2/models/echo/infer", b"{", key=NARROW_KEY).code == 404


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_side_by_side_with_tritons_own_port(stack: Stack, datatype: str, *, binary: bool) -> None:
    """The stock client, unchanged but for the key. Triton takes and gives FP16 in binary only; we also in JSON."""
    kind, values = DATATYPES[datatype]
    tensor: Any = np.array([values], kind)
    name = "STRING" if datatype == "BYTES" else datatype
    ours = _inferred(stack.http, name, datatype, tensor, HEADERS, binary=binary)

    assert ours.dtype == tensor.dtype
    assert ours.tolist() == _as_sent(tensor, binary=binary)
    if binary or datatype != "FP16":
        theirs = _inferred(stack.triton_http, name, datatype, tensor, {}, binary=binary)
        assert ours.tolist() == theirs.tolist()


def _inferred(address: str, name: str, datatype: str, tensor: Any, headers: Mapping[str, str], *, binary: bool) -> Any:
    if datatype == "FP16" and not binary:  # the client itself refuses to write it
        body = {
            "inputs": [
                {"name": f"IN_{name}", "datatype": datatype, "shape": list(tensor.shape), "data": tensor.tolist()}
            ]
        }
        [output] = call(address, "POST", "/v2/models/datatypes/infer", body).document["outputs"]
        return np.array(output["data"], np.float16).reshape(output["shape"])
    given = tritonhttp.InferInput(f"IN_{name}", list(tensor.shape), datatype)
    given.set_data_from_numpy(tensor, binary_data=binary)
    wanted = tritonhttp.InferRequestedOutput(f"OUT_{name}", binary_data=binary)
    with stock(address) as made:
        return made.infer("datatypes", [given], outputs=[wanted], headers=dict(headers)).as_numpy(f"OUT_{name}")


def _as_sent(tensor: Any, *, binary: bool) -> Any:
    """Texts come back as bytes where they are binary, and as texts in JSON."""
    if tensor.dtype != np.object_:
        return tensor.tolist()
    return [[text.encode() if binary else text for text in row] for row in tensor.tolist()]


def test_a_stock_client_asks_all_that_it_can(stack: Stack) -> None:
    with stock(stack.http) as made:
        assert made.is_server_live(headers=dict(HEADERS))
        assert made.is_server_ready(headers=dict(HEADERS))
        assert made.is_model_ready("simple", headers=dict(HEADERS))
        assert not made.is_model_ready("nosuch", headers=dict(HEADERS))
        assert made.get_server_metadata(headers=dict(HEADERS))["version"]
        assert made.get_model_metadata("simple", headers=dict(HEADERS))["inputs"][0]["shape"] == [-1, 16]
        assert made.get_model_config("simple", headers=dict(HEADERS))["max_batch_size"] == 8
        assert made.get_model_repository_index(headers=dict(HEADERS))
        assert made.get_inference_statistics("simple", headers=dict(HEADERS))["model_stats"]
        with pytest.raises(InferenceServerException, match="nosuch"):
            made.get_model_metadata("nosuch", headers=dict(HEADERS))


def test_a_message_of_60_mib_passes_in_binary(stack: Stack) -> None:
    tensor = np.arange(15 << 20, dtype=np.float32)
    given = tritonhttp.InferInput("INPUT0", [tensor.size], "FP32")
    given.set_data_from_numpy(tensor)
    with stock(stack.http) as made:
        answer = made.infer("echo", [given], headers=dict(HEADERS)).as_numpy("OUTPUT0")

    assert np.array_equal(answer, tensor)


def test_what_is_too_large_is_told(stack: Stack) -> None:
    told = call(stack.http, "POST", "/v2/models/simple/infer", b" " * (9 << 20))

    assert told.code == 413
    assert told.headers["x-headrace-reason"] == "REQUEST_TOO_LARGE"
    assert "JSON" in told.document["error"]


def test_headers_with_values_that_grpc_does_not_know_are_left_out(stack: Stack) -> None:
    body = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}

    told = call(stack.http, "POST", "/v2/models/echo/infer", body, headers={"my": "caf\xe9", "tracestate": "\xe9"})

    assert told.code == 200, told


@pytest.mark.parametrize(("name", "odd", "fine"), [("grpc-timeout", "5X", "7S"), ("x-bin", "!!", "aGk")])
def test_a_header_that_can_not_be_read_is_its_own_callers_affair(stack: Stack, name: str, odd: str, fine: str) -> None:
    """Envoy brings everybody's calls on one connection."""
    for _ in range(3):
        assert call(stack.http, "GET", "/v2/models/simple", headers={name: odd}).code == 400
    for _ in range(10):
        assert call(stack.http, "GET", "/v2/models/simple", headers={name: fine}).code == 200


def test_headers_that_grpc_does_not_know_are_left_out(stack: Stack) -> None:
    told = call(stack.http, "GET", "/v2/models/simple", headers={"$o*k`": "1", "x_fine.one": "2"})

    assert told.code == 200


def test_a_query_has_no_word_over_the_path(stack: Stack) -> None:
    """Whatever judges calls by their path would be misled."""
    told = call(stack.http, "POST", "/v2/models/nosuch/infer?model_name=simple&model_version=1&body.data=x", SIMPLE)

    assert (told.code, told.headers["x-headrace-reason"]) == (404, "MODEL_UNKNOWN")


def test_a_stranger_is_refused_before_its_body_is_sent(stack: Stack) -> None:
    connection = http.client.HTTPConnection(stack.http, timeout=SECONDS)
    try:
        connection.putrequest("POST", "/v2/models/simple/infer")
        connection.putheader("content-length", str(60 << 20))
        connection.endheaders(b"{")
        assert connection.getresponse().status == 401
    finally:
        connection.close()


def test_grpc_passes_the_same_port(stack: Stack) -> None:
    with client(stack.http) as made:
        assert made.infer(simple()).model_name == "simple"
        with pytest.raises(grpc.RpcError) as caught:
            made.ask("ModelMetadata", oip.ModelMetadataRequest(name="nosuch"))
    assert _code(caught.value) == grpc.StatusCode.NOT_FOUND


def _code(error: grpc.RpcError) -> grpc.StatusCode:
    assert isinstance(error, grpc.Call)
    return error.code()


def test_made_up_calls_are_answered_as_the_openapi_document_says(stack: Stack, tmp_path: Path) -> None:
    """What it calls is made up from the document, good and bad."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance"
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(OPENAPI), "--url", f"http://{stack.http}"]
    command += ["-H", f"authorization: Bearer {GUEST_KEY}", "--phases", "fuzzing", "--max-examples", "5"]
    command += ["--exclude-path-regex", "/ready$"]  # 503 is how they say no
    command += ["--checks", f"{checks},response_schema_conformance", "--continue-on-failure", "--no-color"]

    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)

    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]
    assert "14 selected / 17 total" in ran.stdout
