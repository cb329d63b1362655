"""A model may be called anything; its topic's name is one that Kafka takes, and no other model's."""

import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from headrace.bus.topics import (
    MAX_TOPIC_LENGTH,
    Lane,
    UnnameableModelError,
    consumer_group,
    decode_model,
    encode_model,
    model_of,
    request_topic,
)

LEGAL = re.compile(r"[A-Za-z0-9._-]{1,249}")

plain = st.text(alphabet="ab-_.AF09", min_size=1, max_size=12)  # what an encoding is likely to confuse
anything = st.text(st.characters(), min_size=1, max_size=30)  # lone surrogates too
models = plain | anything
pools = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
lanes: st.SearchStrategy[Lane] = st.sampled_from(["interactive", "batch"])


@given(models)
@example("-")
@example("--2E")
@example("a.b")
@example("\ud800")
def test_a_models_name_comes_back_from_its_encoding(model: str) -> None:
    assert decode_model(encode_model(model)) == model


@given(models, models)
@example("a.b", "a_b")
@example("-2E", ".")
@example("--", "-")
def test_two_models_never_share_a_topic_nor_differ_in_dots_and_underscores_alone(one: str, other: str) -> None:
    """Kafka takes `.` and `_` for the same in the names of its metrics, and refuses the second of two such topics."""
    assume(one != other)

    first, second = (encode_model(model) for model in (one, other))

    assert first.replace(".", "_") != second.replace(".", "_")
    assert "." not in first


@given(pools, lanes, models)
def test_a_request_topic_is_legal_and_tells_its_model(pool: str, lane: Lane, model: str) -> None:
    try:
        topic = request_topic(pool, lane, model)
    except UnnameableModelError:
        assert len(f"headrace.{pool}.{lane}.{encode_model(model)}") > MAX_TOPIC_LENGTH
        return

    assert LEGAL.fullmatch(topic)
    assert model_of(topic, pool, lane) == model


@given(pools, pools, lanes, lanes, models)
@example("a", "a-b", "interactive", "interactive", "m")
def test_a_topic_is_of_one_pool_and_lane_only(pool: str, other: str, lane: Lane, other_lane: Lane, model: str) -> None:
    assume((pool, lane) != (other, other_lane))
    topic = f"headrace.{pool}.{lane}.{encode_model(model)}"

    assert model_of(topic, other, other_lane) is None


@given(st.text(alphabet="ab-_.AFaf09", max_size=12))
@example("-2e")
@example("-41")
@example("-2")
@example("-FF")
@example("-5F")
@example("---")
def test_what_is_decoded_is_the_encoding_of_its_model(text: str) -> None:
    """A topic that somebody else made is nobody's, rather than a second name of a model."""
    model = decode_model(text)

    assert model is None or encode_model(model) == text


def test_a_topic_may_be_as_long_as_kafka_takes_and_no_longer() -> None:
    room = MAX_TOPIC_LENGTH - len("headrace.default.interactive.")

    assert len(request_topic("default", "interactive", "m" * room)) == MAX_TOPIC_LENGTH
    with pytest.raises(UnnameableModelError):
        request_topic("default", "interactive", "m" * (room + 1))
    with pytest.raises(UnnameableModelError):
        request_topic("default", "interactive", "ß" * (room // 6 + 1))


def test_a_model_without_a_name_has_no_topic() -> None:
    with pytest.raises(UnnameableModelError):
        request_topic("default", "interactive", "")
    assert model_of("headrace.default.interactive.", "default", "interactive") is None


def test_names_are_those_that_operators_were_told() -> None:
    """They are in the documentation and in access rules: a change strands what runs."""
    assert request_topic("default", "interactive", "resnet-50.v2") == "headrace.default.interactive.resnet--50-2Ev2"
    assert request_topic("default", "batch", "größe_1") == "headrace.default.batch.gr-C3-B6-C3-9Fe_1"
    assert consumer_group("default", "interactive") == "headrace.default.interactive"
