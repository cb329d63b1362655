"""The key of an announcement says of whom it speaks, whatever they are called."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.bus.announcements import (
    Key,
    gateway_key,
    model_key,
    parse_key,
    repository_key,
    router_key,
    statistics_key,
)

names = st.text(min_size=1, max_size=20) | st.sampled_from(["a/b", "%2F", "%", "a%2Fb", "/", "ä", "..", " "])


def keys() -> st.SearchStrategy[tuple[str, Key]]:
    return st.one_of(
        names.map(lambda own: (gateway_key(own), Key("gateway", id=own))),
        st.tuples(names, names).map(lambda it: (router_key(*it), Key("router", pool=it[0], id=it[1]))),
        st.tuples(names, names).map(lambda it: (repository_key(*it), Key("repository", pool=it[0], model=it[1]))),
        st.tuples(names, names, names).map(
            lambda it: (model_key(*it), Key("model", pool=it[0], id=it[1], model=it[2])),
        ),
        st.tuples(names, names, names).map(
            lambda it: (statistics_key(*it), Key("statistics", pool=it[0], id=it[1], model=it[2])),
        ),
    )


@given(keys())
def test_a_key_comes_back_as_its_parts(said: tuple[str, Key]) -> None:
    text, key = said

    assert parse_key(text) == key
    assert str(key) == text
    assert text.isascii()


@given(keys(), keys())
def test_two_that_differ_never_share_a_key(one: tuple[str, Key], other: tuple[str, Key]) -> None:
    assume(one[1] != other[1])

    assert one[0] != other[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gateway",
        "gateway/",
        "gateway/a/b",
        "router/pool",
        "router//id",
        "model/pool/id",
        "model/pool/id/m/1",
        "Gateway/a",
        "tenant/a",
        "/gateway/a",
    ],
)
def test_what_is_not_a_key_of_ours_is_none(text: str) -> None:
    """Such as a kind that a later version says: an old reader passes it over."""
    assert parse_key(text) is None
