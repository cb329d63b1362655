"""Bodies of the repository's methods."""

import base64
from contextlib import suppress

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Refusal, RequestTooLarge, RestRequestInvalid
from gateway.rest.repository import index_request, load_request, unload_request

LIMIT = 1 << 20
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(("body", "ready"), [(b"", False), (b" ", False), (b"{}", False), (b'{"ready":true}', True)])
def test_an_index_is_asked_for_with_or_without_a_body(body: bytes, *, ready: bool) -> None:
    assert index_request(body).ready is ready


def test_a_load_brings_config_and_files() -> None:
    content = base64.b64encode(b"\x00\xff").decode()
    body = f'{{"parameters": {{"config": "{{}}", "file:1/model.py": "{content}", "n": 3, "b": true}}}}'

    parameters = load_request("m", body.encode(), LIMIT).parameters

    assert parameters["config"].string_param == "{}"
    assert parameters["file:1/model.py"].bytes_param == b"\x00\xff"
    assert (parameters["n"].int64_param, parameters["b"].bool_param) == (3, True)


def test_a_config_may_be_an_object() -> None:
    assert load_request("m", b'{"parameters":{"config":{"a":1}}}', LIMIT).parameters["config"].string_param == '{"a":1}'


def test_an_unload_may_take_what_depends_on_it() -> None:
    request = unload_request("m", b'{"parameters":{"unload_dependents":true}}')

    assert request.model_name == "m"
    assert request.parameters["unload_dependents"].bool_param


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{", "JSON"),
        (b"[]", "object"),
        (b'{"parameters":[]}', "parameters"),
        (b'{"parameters":{"a":1.5}}', "parameters.a"),
        (b'{"parameters":{"a":null}}', "parameters.a"),
        (b'{"parameters":{"a":9223372036854775808}}', "parameters.a"),
        (b'{"parameters":{"file:x":"!!"}}', "base64"),
    ],
)
def test_a_mistake_is_told_by_its_place(body: bytes, word: str) -> None:
    with pytest.raises(RestRequestInvalid, match=word):
        load_request("m", body, LIMIT)


def test_ready_is_true_or_false() -> None:
    with pytest.raises(RestRequestInvalid, match="ready"):
        index_request(b'{"ready":1}')


@given(JSON, st.binary(max_size=20))
def test_any_body_is_read_or_refused(document: object, noise: bytes) -> None:
    bodies = [noise]
    with suppress(TypeError):  # a number that JSON has and orjson has not
        bodies += [orjson.dumps(document), orjson.dumps({"parameters": document})]
    for body in bodies:
        for read in (
            lambda body: load_request("m", body, LIMIT),
            lambda body: unload_request("m", body),
            index_request,
        ):
            try:
                read(body).SerializeToString()
            except Refusal:
                continue


def test_a_body_beyond_its_size_is_refused_before_it_is_read() -> None:
    with pytest.raises(RequestTooLarge):
        load_request("m", b" " * 101, 100)
    with pytest.raises(RequestTooLarge):
        unload_request("m", b" " * (65 << 10))
    with pytest.raises(RequestTooLarge):
        index_request(b" " * (65 << 10))
