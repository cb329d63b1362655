"""A real Triton for tests: the local stack's own, or one that already runs (`--triton=host:port`)."""

import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.local import leash, models, triton
from headrace.local.ports import FreePorts
from tests.parts import missing

HOST = "127.0.0.1"
START_SECONDS = 60
STOP_SECONDS = triton.EXIT_SECONDS + 15
TEST_MODELS = Path(__file__).parents[1] / "models"
BROKEN_MODELS = Path(__file__).parents[1] / "models_broken"


@dataclass(frozen=True)
class RunningTriton:
    """A Triton that a test started."""

    address: str
    """`host:port` of its gRPC port."""
    process: subprocess.Popen[bytes]
    log: Path


@pytest.fixture(scope="session")
def triton_address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gRPC `host:port` of a Triton with the bundled and the test models, which all tests of the session share."""
    where = str(request.config.getoption("--triton", "embedded"))
    if where != "embedded":
        yield where
        return
    home = tmp_path_factory.mktemp("triton")
    with running_triton(home, both_repositories(home)) as running:
        yield running.address


def both_repositories(home: Path, only: Collection[str] = ()) -> Path:
    """One repository of links, with the bundled models and those of the tests, or only some, for speed."""
    materialised = home / "bundled"
    models.materialise(models.bundled(), materialised)
    both = home / "models"
    both.mkdir()
    for model in (*materialised.iterdir(), *TEST_MODELS.iterdir()):
        if not only or model.name in only:
            (both / model.name).symlink_to(model)
    return both


@contextmanager
def running_triton(
    home: Path, repository: Path, *, name: str = "triton", complete_configs: bool = False
) -> Iterator[RunningTriton]:
    """A Triton of one's own, for tests that stop it or kill it: it answers when this is entered, and is gone after."""
    ports = FreePorts(HOST)
    grpc_port = ports.take()
    try:
        program = triton.program(
            name=name,
            state_dir=home,
            repository=repository,
            host=HOST,
            grpc_port=grpc_port,
            http_port=ports.take(),
            metrics_port=ports.take(),
            complete_configs=complete_configs,
        )
    except triton.TritonUnavailableError as exc:
        missing("Triton", f"{exc}; the tests that need no Triton of their own take one with --triton=HOST:PORT")
    log = home / f"{name}.log"
    # The leash ends Triton even when the test run itself is killed.
    leashed = (sys.executable, "-I", "-S", leash.__file__, str(os.getpid()), *program.argv)
    with log.open("ab") as out:
        process = subprocess.Popen(
            leashed, env={**os.environ, **program.env}, stdin=subprocess.DEVNULL, stdout=out, stderr=out
        )
    try:
        running = RunningTriton(f"{HOST}:{grpc_port}", process, log)
        _wait_until_live(running)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        finally:
            process.kill()
            process.wait()


def _wait_until_live(running: RunningTriton) -> None:
    deadline = time.monotonic() + START_SECONDS
    with grpc.insecure_channel(running.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        while True:
            try:
                stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=1)
            except grpc.RpcError:
                assert running.process.poll() is None, f"Triton died at start: {running.log.read_text()[-2000:]}"
                assert time.monotonic() < deadline, f"no Triton in {START_SECONDS} s: {running.log.read_text()[-2000:]}"
                time.sleep(0.02)
            else:
                return
