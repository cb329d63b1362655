"""The OpenAPI document, against what it is made from."""

import re

import schemathesis

from headrace.v1 import rest_pb2
from scripts import openapi


def test_the_document_is_what_the_protos_give() -> None:
    """`.venv/bin/python scripts/openapi.py` writes it anew."""
    assert openapi.PAGE.read_text() == openapi.rendered()


def test_the_document_is_valid() -> None:
    schemathesis.openapi.from_path(openapi.PAGE).validate()


def test_every_method_has_its_paths_and_every_operation_a_name_of_its_own() -> None:
    operations = [each["operationId"] for path in openapi.document()["paths"].values() for each in path.values()]

    assert len(operations) == len(set(operations)) == 17
    declared = {method.name for method in rest_pb2.DESCRIPTOR.services_by_name["RestService"].methods}
    assert {re.sub("(Version|OfAll)$", "", operation) for operation in operations} == declared
