"""Who calls, where there is a key, a certificate, both, or neither."""

from typing import cast

import pytest

from gateway.callers import Callers
from gateway.errors import CertificateUnknown, KeyExpired, KeyInvalid, KeyMissing, Refusal
from gateway.identity import Caller
from gateway.status import Context

BY_FILE, BY_TOKEN, BY_CERTIFICATE = Caller("a", "file"), Caller("b", "token"), Caller("c", "certificate:x")
KEY, TOKEN, BOTH, WRONG = "a-key", "a-token", "known-twice", "unknown"
CERTIFIED, UNKNOWN = "a certificate", ""


def key_file(key: str) -> Caller | None:
    if key == "expired":
        raise KeyExpired(key_id="expired")
    return BY_FILE if key in {KEY, BOTH} else None


def tokens(key: str) -> Caller | None:
    return BY_TOKEN if key in {TOKEN, BOTH} else None


class Call:
    """As much of gRPC as is looked at."""

    def __init__(self, key: str | None, certificate: str) -> None:
        self._metadata = () if key is None else (("x-api-key", key),)
        self.certificate = certificate

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """What was sent."""
        return self._metadata


def certificate(context: Context) -> Caller:
    if not cast("Call", context).certificate:
        raise CertificateUnknown
    return BY_CERTIFICATE


def who(callers: Callers, key: str | None, shown: str = UNKNOWN) -> Caller | type[Refusal]:
    """Who calls, or why not; what is told early is told of the call."""
    context = cast("Context", Call(key, shown))
    try:
        early = callers.by_metadata(context.invocation_metadata() or ())
    except Refusal as refusal:
        with pytest.raises(type(refusal)):
            callers(context)
        return type(refusal)
    try:
        caller = callers(context)
    except Refusal as refusal:
        assert early is None
        return type(refusal)
    assert early in {None, caller}
    return caller


def test_the_first_that_knows_a_credential_counts() -> None:
    assert who(Callers([key_file, tokens]), BOTH) == BY_FILE
    assert who(Callers([tokens, key_file]), BOTH) == BY_TOKEN
    assert who(Callers([key_file, tokens]), TOKEN) == BY_TOKEN
    assert who(Callers([key_file, tokens]), "expired") is KeyExpired


@pytest.mark.parametrize(("key", "expected"), [(None, KeyMissing), (WRONG, KeyInvalid), (KEY, BY_FILE)])
def test_without_certificates_metadata_alone_counts(key: str | None, expected: object) -> None:
    assert who(Callers([key_file], None, [tokens]), key, CERTIFIED) == expected
    assert who(Callers([], None, [key_file, tokens]), key, CERTIFIED) == expected


@pytest.mark.parametrize(
    ("key", "shown", "last", "first", "between"),
    [
        (None, UNKNOWN, CertificateUnknown, CertificateUnknown, CertificateUnknown),
        (None, CERTIFIED, BY_CERTIFICATE, BY_CERTIFICATE, BY_CERTIFICATE),
        ("", CERTIFIED, BY_CERTIFICATE, BY_CERTIFICATE, BY_CERTIFICATE),
        (WRONG, UNKNOWN, KeyInvalid, KeyInvalid, KeyInvalid),
        (WRONG, CERTIFIED, KeyInvalid, KeyInvalid, KeyInvalid),
        ("expired", CERTIFIED, KeyExpired, KeyExpired, KeyExpired),
        (KEY, UNKNOWN, BY_FILE, BY_FILE, BY_FILE),
        (KEY, CERTIFIED, BY_FILE, BY_CERTIFICATE, BY_FILE),
        (TOKEN, UNKNOWN, BY_TOKEN, BY_TOKEN, BY_TOKEN),
        (TOKEN, CERTIFIED, BY_TOKEN, BY_CERTIFICATE, BY_CERTIFICATE),
        (BOTH, CERTIFIED, BY_FILE, BY_CERTIFICATE, BY_FILE),
    ],
)
def test_a_key_must_be_good_and_the_order_says_which_of_two_counts(
    key: str | None, shown: str, last: object, first: object, between: object
) -> None:
    assert who(Callers([key_file, tokens], certificate), key, shown) == last
    assert who(Callers([], certificate, [key_file, tokens]), key, shown) == first
    assert who(Callers([key_file], certificate, [tokens]), key, shown) == between
