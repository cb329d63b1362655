"""Refusals, and the page that lists them."""

import re
import string
from pathlib import Path

import pytest

from gateway.errors import Internal, ModelUnknown, Refusal, RoleRequired, leaves
from gateway.status import code_of

PAGE = Path(__file__).parents[3] / "docs/reference/errors.md"


def test_reasons_are_unique_and_well_formed() -> None:
    reasons = [leaf.reason for leaf in leaves()]

    assert len(reasons) == len(set(reasons)) > 20
    assert all(re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+|INTERNAL", reason) for reason in reasons)


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.reason)
def test_a_message_is_a_sentence_on_one_line(leaf: type[Refusal]) -> None:
    message = leaf().message

    assert message.endswith(".")
    assert "\n" not in message


def test_the_page_lists_every_reason_with_its_code_and_whether_it_is_retriable() -> None:
    row = re.compile(r"^\| `([A-Z_]+)` \| `([A-Z_]+)` \| (yes|no) \| .+ \|$", re.MULTILINE)
    rows = row.findall(PAGE.read_text(encoding="utf-8"))

    assert set(rows) == {(leaf.reason, code_of(leaf).name, "yes" if leaf.retriable else "no") for leaf in leaves()}
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("leaf", leaves(), ids=lambda leaf: leaf.reason)
def test_the_page_has_every_message_word_for_word(leaf: type[Refusal]) -> None:
    assert leaf().message in PAGE.read_text(encoding="utf-8")


def test_what_varies_in_the_text_is_in_the_metadata() -> None:
    refusal = RoleRequired(method="/inference.GRPCInferenceService/RepositoryModelLoad", role="admin")

    assert refusal.metadata == {"method": "/inference.GRPCInferenceService/RepositoryModelLoad", "role": "admin"}
    assert all(value in refusal.message for value in refusal.metadata.values())


def test_braces_from_a_caller_are_only_text() -> None:
    assert "'{role!r:>9}{0}'" in ModelUnknown(model="{role!r:>9}{0}").message


def test_a_long_name_does_not_make_a_long_header() -> None:
    refusal = ModelUnknown(model="m" * 1_000_000)

    assert len(refusal.message) < 500
    assert len(refusal.metadata["model"]) == 200


def test_a_missing_value_does_not_hide_the_refusal() -> None:
    fields = {name for _, name, _, _ in string.Formatter().parse(Internal().message) if name}

    assert fields == {"call_id"}
