"""The scan against the real parser: whatever the scan says of a request, the real parser says the same."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest

from gateway.errors import RequestMalformed
from gateway.routing_fields import in_sequence, routing_fields
from tests.fuzz.agreement import NESTED, assert_no_worse, assert_same, verdicts
from tests.unit.gateway.wire import field, varint

texts = st.text(max_size=12)
parameters = st.dictionaries(texts, st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), texts), max_size=3)


def parameter_map(values: dict[str, bool | int | str]) -> ModelInferRequest:
    request = ModelInferRequest()
    for key, value in values.items():
        if isinstance(value, bool):
            request.parameters[key].bool_param = value
        elif isinstance(value, int):
            request.parameters[key].int64_param = value
        else:
            request.parameters[key].string_param = value
    return request


@st.composite
def requests(draw: st.DrawFn) -> ModelInferRequest:
    """Valid requests with everything that the protocol has."""
    request = parameter_map(draw(parameters))
    request.model_name = draw(texts)
    request.model_version = draw(texts)
    request.id = draw(texts)
    for name in draw(st.lists(texts, max_size=2)):
        tensor = request.inputs.add(name=name, datatype="INT32", shape=draw(st.lists(st.integers(0, 9), max_size=3)))
        tensor.contents.int_contents.extend(draw(st.lists(st.integers(-9, 9), max_size=4)))
    for name in draw(st.lists(texts, max_size=2)):
        request.outputs.add(name=name)
    request.raw_input_contents.extend(draw(st.lists(st.binary(max_size=300), max_size=3)))
    return request


wide_varints = st.builds(varint, st.integers(0, 2**78 - 1), st.integers(1, 11))
lengths_beyond = st.sampled_from([0, 0, 0, 0, 1 << 31, 1 << 32, 1 << 63, 1 << 64, 1 << 69])
field_numbers = st.one_of(st.integers(0, 9), st.sampled_from([15, 16, 2047, 2**29 - 1, 2**29, 2**29 + 1, 2**32]))


@st.composite
def fields(draw: st.DrawFn) -> bytes:
    """One top-level field of any number and kind, written in any width that a varint may have, or in none it may."""
    number, kind = draw(field_numbers), draw(st.integers(0, 7))
    tag = varint(number << 3 | kind, draw(st.integers(1, 7)))
    if kind == 0:
        return tag + draw(wide_varints)
    if kind == 1:
        return tag + draw(st.binary(min_size=8, max_size=8))
    if kind == 2:
        value = b"" if number in NESTED else draw(st.one_of(texts.map(str.encode), st.binary(max_size=20)))
        return tag + varint(len(value) + draw(lengths_beyond), draw(st.integers(1, 11))) + value
    if kind == 3:
        inside = b"".join(draw(st.lists(fields(), max_size=2)))
        return tag + inside + varint(number << 3 | 4)
    if kind == 5:
        return tag + draw(st.binary(min_size=4, max_size=4))
    return tag  # an end without a start, or a kind that does not exist


@given(requests())
def test_what_a_stub_sends_is_read_as_the_real_parser_reads_it(request_: ModelInferRequest) -> None:
    scanned, parsed = verdicts(request_.SerializeToString())

    assert scanned is not None
    assert parsed is not None
    assert_same(scanned, parsed)


@given(st.lists(requests(), min_size=2, max_size=3))
def test_a_field_that_stands_twice_counts_where_it_stands_last(several: list[ModelInferRequest]) -> None:
    """A caller must not name one model in front for us and another one behind for Triton."""
    scanned, parsed = verdicts(b"".join(each.SerializeToString() for each in several))

    assert scanned is not None
    assert parsed is not None
    assert_same(scanned, parsed)


def test_a_model_named_again_behind_the_tensors_is_the_one_that_counts() -> None:
    front = ModelInferRequest(model_name="granted", raw_input_contents=[bytes(1000)])
    behind = ModelInferRequest(model_name="forbidden")

    assert routing_fields(front.SerializeToString() + behind.SerializeToString()).model_name == "forbidden"


@given(st.lists(fields(), max_size=6))
@example([field(1, b"a"), varint(1 << 3 | 0) + varint(7)])
@example([varint(1 << 3 | 2, 6) + b"\x01a"])
@example([varint(1 << 3 | 2) + varint(1, 6) + b"a"])
@example([varint(1 << 3 | 2) + varint(1 + (1 << 64), 10) + b"a"])
@example([varint((1 << 3 | 2) + (1 << 32), 5) + b"\x01a"])
def test_top_level_fields_of_any_order_kind_and_width_get_the_real_parsers_verdict(parts: list[bytes]) -> None:
    scanned, parsed = verdicts(b"".join(parts))

    assert (scanned is None) == (parsed is None)
    if scanned is not None and parsed is not None:
        assert_same(scanned, parsed)


@given(requests(), st.data())
def test_a_truncated_request_is_refused_where_the_real_parser_refuses_it(
    request_: ModelInferRequest, data: st.DataObject
) -> None:
    whole = request_.SerializeToString()
    request = whole[: data.draw(st.integers(0, len(whole)))]
    scanned, parsed = verdicts(request)

    assert (scanned is None) == (parsed is None)
    if scanned is not None and parsed is not None:
        assert_same(scanned, parsed)


@given(requests(), st.data())
def test_a_damaged_request_is_never_read_differently(request_: ModelInferRequest, data: st.DataObject) -> None:
    damaged = bytearray(request_.SerializeToString() or b"\x0a")
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=3)):
        damaged[place] = data.draw(st.integers(0, 255))
    assert_no_worse(bytes(damaged))


@given(st.binary(max_size=200))
def test_random_bytes_are_never_read_differently(request: bytes) -> None:
    assert_no_worse(request)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_text_that_is_not_utf8_is_refused_even_where_it_does_not_count(number: int) -> None:
    with pytest.raises(RequestMalformed):
        routing_fields(field(number, b"\xff\xfe") + field(number, b"good"))


@pytest.mark.parametrize(
    "many",
    [
        pytest.param(field(7, b"") * 300_000, id="empty tensors"),
        pytest.param(varint(99 << 3) + b"\x01", id="one unknown field"),
        pytest.param((varint(99 << 3) + b"\x01") * 200_000, id="unknown fields"),
        pytest.param(b"\x0a\x01a" * 300_000, id="the name again and again"),
        pytest.param(b"\x23" * 90 + b"\x24" * 90, id="nested groups"),
        pytest.param(b"\x23" * 500_000, id="groups that never end"),
    ],
)
def test_a_message_of_nothing_but_small_fields_costs_little_more_than_the_real_parser(many: bytes) -> None:
    """A message of 64 MiB may hold 30 million fields: the walk must not be the way to keep a gateway busy."""
    started = time.process_time()
    assert_no_worse_quietly(many)
    both = time.process_time() - started

    assert both < 0.5


def assert_no_worse_quietly(request: bytes) -> None:
    scanned, parsed = verdicts(request)
    assert (scanned is None) == (parsed is None)
    if scanned is not None and parsed is not None:
        assert scanned.model_name == parsed.model_name


def test_a_large_tensor_is_stepped_over() -> None:
    request = ModelInferRequest(model_name="m", raw_input_contents=[bytes(32 << 20)]).SerializeToString()
    routing_fields(request)

    started = time.process_time()
    for _ in range(100):
        routing_fields(request)
    assert time.process_time() - started < 0.05


# Sequences.


@given(parameters)
def test_a_request_is_in_a_sequence_where_it_names_one(values: dict[str, bool | int | str]) -> None:
    values = {"sequence_start": True, **values}
    values.pop("sequence_id", None)
    for named in (None, 0, "", 7, -1, "session"):
        request = parameter_map(values if named is None else {**values, "sequence_id": named})
        assert in_sequence(request.SerializeToString()) == bool(named)


def test_the_last_name_of_a_sequence_counts() -> None:
    none, one = (parameter_map({"sequence_id": number}).SerializeToString() for number in (0, 7))

    assert in_sequence(none + one)
    assert not in_sequence(one + none)
    assert not in_sequence(field(4, field(1, b"sequence_id")))
    assert not in_sequence(field(4, b"\xff"))
