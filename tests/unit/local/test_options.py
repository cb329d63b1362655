"""The options of `headrace up`: what is refused before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from headrace.local.options import UpOptions, UsageError, join_address, parse_address


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"grpc_port": 0}, "--grpc-port 0"),
        ({"admin_port": 65536}, "--admin-port 65536"),
        ({"grpc_port": 8002}, "must differ"),
        ({"replicas": 0}, "--replicas 0"),
        ({"gateways": 65}, "--gateways 65"),
        ({"api_key": ""}, "--api-key"),
        ({"api_key": " padded "}, "--api-key"),
        ({"api_key": "ключ"}, "--api-key"),
        ({"api_key": "a" * 513}, "--api-key"),
        ({"triton": ("here",)}, "--triton here: expected HOST:PORT"),
        ({"triton": ("a:1", "a:1")}, "twice"),
        ({"triton": ("a:1",), "replicas": 2}, "one of the two"),
        ({"triton": ("a:1",), "model_repository": Path("m")}, "--model-repository"),
        ({"broker": "kafka"}, "--broker kafka: expected HOST:PORT or `embedded`"),
        ({"database": "foo"}, "--database must be postgresql://"),
        ({"database": "mysql://h/x"}, "--database must be postgresql://"),
        ({"database": "postgresql://u:s3cret@h/x"}, "--database must hold no password"),
        ({"state_dir": Path("a#b")}, "--state-dir a#b"),
        ({"broker": "kafka:99999"}, "a port is a number"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_that_names_the_option(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        UpOptions(**{"state_dir": Path("s")} | options)

    assert said in str(refusal.value)
    assert "s3cret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "host", "port"), [("kafka.example:9092", "kafka.example", 9092), ("[::1]:1", "::1", 1)]
)
def test_an_address_survives_the_way_there_and_back(text: str, host: str, port: int) -> None:
    assert parse_address("--broker", text) == (host, port)
    assert join_address(host, port) == text


@pytest.mark.parametrize("text", ["", ":1", "host:", "host:x", "host:-1", "host:²", "::1:9092", "host:0"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address("--broker", text)
