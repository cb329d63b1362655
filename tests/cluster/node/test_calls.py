"""What the local overlay deploys answers, as its users call it."""

import json

import pytest

from tests.cluster.node.deployed.headrace import Headrace

REST = "http://headrace-envoy:8000"
REQUEST = {
    "inputs": [
        {"name": name, "datatype": "INT32", "shape": [1, 16], "data": list(range(16))} for name in ("INPUT0", "INPUT1")
    ]
}
ASK = """
import os, sys, urllib.request, urllib.error
request = urllib.request.Request(sys.argv[1], data=sys.stdin.buffer.read() or None)
if len(sys.argv) < 3:
    request.add_header("authorization", "Bearer " + os.environ["HEADRACE_KEY"])
try:
    answer = urllib.request.urlopen(request, timeout=30)
except urllib.error.HTTPError as refused:
    answer = refused
print(answer.status)
print(answer.read().decode())
"""


def ask(headrace: Headrace, path: str, body: object = None, *, key: bool = True) -> tuple[int, str]:
    """A status and a body, of Envoy."""
    words = ("python3", "-c", ASK, REST + path, *([] if key else ["without"]))
    status, _, text = headrace.call(*words, given="" if body is None else json.dumps(body)).partition("\n")
    return int(status), text


def test_a_stock_client_is_answered_through_the_service(headrace: Headrace) -> None:
    with headrace.load("--calls", "100") as load:
        report = load.stop()
    assert (len(report.answered), report.errors) == (100, ())


def test_rest_is_answered_through_envoy(headrace: Headrace) -> None:
    status, text = ask(headrace, "/v2/models/simple/infer", REQUEST)
    assert status == 200, text
    outputs = {output["name"]: output["data"] for output in json.loads(text)["outputs"]}
    assert outputs == {"OUTPUT0": [2 * number for number in range(16)], "OUTPUT1": [0] * 16}


@pytest.mark.parametrize("path", ["/v2/models/simple/infer", "/v2/models/simple"])
def test_without_a_key_nothing_is_answered(headrace: Headrace, path: str) -> None:
    status, text = ask(headrace, path, REQUEST if path.endswith("infer") else None, key=False)
    assert status == 401, text
