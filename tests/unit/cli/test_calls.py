"""`headrace models` and `headrace infer` against a server that keeps what it is sent."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from tritonclient.grpc import service_pb2, service_pb2_grpc
from typer.testing import CliRunner, Result

from headrace.cli import app
from headrace.local import state

KEY = "the stack's key"


class Recorder(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # tritonclient is untyped
    """Knows no model, and keeps the key of each call."""

    def __init__(self) -> None:
        self.keys: list[object] = []

    def RepositoryIndex(  # noqa: N802  the method's own name
        self, _: service_pb2.RepositoryIndexRequest, context: grpc.ServicerContext
    ) -> service_pb2.RepositoryIndexResponse:
        self.keys.append(dict(context.invocation_metadata()).get("authorization"))
        return service_pb2.RepositoryIndexResponse()


@contextmanager
def serving(recorder: Recorder, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """The server's address."""
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(recorder, server)
    address = "127.0.0.1:0"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def describe_stack(state_dir: Path, *addresses: str) -> None:
    """As a `headrace up` that runs would have done."""
    (state_dir / "key").write_text(KEY)
    state.describe(
        state_dir,
        state.Description(
            pid=os.getpid(),
            started=state.start_time(os.getpid()) or 0,
            ready=True,
            state_dir=str(state_dir),
            key_file=str(state_dir / "key"),
            database=f"sqlite:///{state_dir}/headrace.db",
            policy_file=str(state_dir / "tenants.yaml"),
            endpoints=state.Endpoints(
                grpc=list(addresses),
                http="127.0.0.1:1",
                envoy_admin="127.0.0.1:1",
                admin=[],
                reply=[],
                kafka="127.0.0.1:1",
                triton=[],
                router_admin=[],
            ),
        ),
    )


def models(state_dir: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["models", f"--state-dir={state_dir}", *options])


@pytest.mark.parametrize("how", ["by default", "by its address"])
def test_the_stacks_key_goes_to_each_of_its_gateways(tmp_path: Path, how: str) -> None:
    recorder = Recorder()
    with serving(recorder) as address:
        describe_stack(tmp_path, *((address,) if how == "by default" else ("127.0.0.1:1", address)))

        done = models(tmp_path, *([] if how == "by default" else ["--url", address]))

    assert done.exit_code == 0, done.output
    assert recorder.keys == [f"Bearer {KEY}"]


def test_the_stacks_key_goes_to_nobody_else(tmp_path: Path) -> None:
    """It has the admin role, and another server may be anybody's."""
    recorder = Recorder()
    with serving(recorder) as address:
        describe_stack(tmp_path, "127.0.0.1:1")

        models(tmp_path, "--url", address)

    assert recorder.keys == [None]


def test_a_gateway_with_tls_is_called_by_an_authority_that_is_named(tmp_path: Path) -> None:
    recorder, authority = Recorder(), trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    (tmp_path / "given").write_text("my key\n")
    own = authority.issue_cert("127.0.0.1")
    credentials = grpc.ssl_server_credentials([(own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())])

    with serving(recorder, credentials) as address:
        options = ["--url", address, "--key-file", str(tmp_path / "given")]
        done = models(tmp_path, *options, "--tls-ca", str(tmp_path / "ca.pem"))
        plain = models(tmp_path, *options)

    assert done.exit_code == 0, done.output
    assert recorder.keys == ["Bearer my key"]
    assert plain.exit_code == 1
    assert "--tls-ca" in plain.stderr


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_an_authority_that_is_none_is_refused_by_name(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_text(content)

    done = models(tmp_path, "--url", "127.0.0.1:1", "--tls-ca", str(tmp_path / "ca.pem"))

    assert done.exit_code == 2
    assert done.stderr == f"headrace: {tmp_path / 'ca.pem'} holds no PEM certificates\n"
