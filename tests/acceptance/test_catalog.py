"""What the gateway answers from its registry is what Triton itself answers."""

import pytest
from tritonclient.grpc import service_pb2 as oip

from tests.acceptance.calls import MODELS, Client, Message, recording
from tests.acceptance.eventually import eventually

SECONDS = 30.0


def test_the_server_is_live_and_ready(gateway: Client) -> None:
    assert gateway.ask("ServerLive", oip.ServerLiveRequest()).live
    assert gateway.ask("ServerReady", oip.ServerReadyRequest()).ready


def test_the_server_s_metadata_is_triton_s_without_shared_memory(gateway: Client, triton: Client) -> None:
    through, direct = (each.ask("ServerMetadata", oip.ServerMetadataRequest()) for each in (gateway, triton))

    assert (through.name, through.version) == (direct.name, direct.version)
    assert list(through.extensions) == [name for name in direct.extensions if "shared_memory" not in name]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("version", ["", "1"])
def test_a_model_s_metadata_and_config_are_triton_s(gateway: Client, triton: Client, model: str, version: str) -> None:
    for method, request in (
        ("ModelMetadata", oip.ModelMetadataRequest(name=model, version=version)),
        ("ModelConfig", oip.ModelConfigRequest(name=model, version=version)),
    ):
        assert gateway.ask(method, request) == triton.ask(method, request)


@pytest.mark.parametrize(
    ("model", "version", "ready"),
    [("simple", "", True), ("simple", "1", True), ("simple", "2", False), ("nothing", "", False)],
)
def test_model_ready_is_triton_s_answer(
    gateway: Client, triton: Client, model: str, version: str, *, ready: bool
) -> None:
    request = oip.ModelReadyRequest(name=model, version=version)

    assert gateway.ask("ModelReady", request).ready is triton.ask("ModelReady", request).ready is ready


def test_the_repository_index_is_triton_s(gateway: Client, triton: Client) -> None:
    for request in (oip.RepositoryIndexRequest(), oip.RepositoryIndexRequest(ready=True)):
        through, direct = (_rows(each.ask("RepositoryIndex", request)) for each in (gateway, triton))
        assert through == direct
        assert [name for name, *_ in through] == MODELS


def test_statistics_grow_by_the_calls_that_were_made(gateway: Client, triton: Client) -> None:
    """Triton counts a call some time after its answer; a model that is loaded anew begins at 0."""
    request = oip.ModelStatisticsRequest(name="recording")
    gateway.ask("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(model_name="recording"))
    gateway.ask("RepositoryModelLoad", oip.RepositoryModelLoadRequest(model_name="recording"))

    def told(count: int) -> Message:
        (now,) = gateway.ask("ModelStatistics", request).model_stats
        return now if now.inference_count == count else None

    eventually(lambda: told(0), seconds=SECONDS, what="the announced counts begin anew")
    for _ in range(7):
        gateway.infer(recording(b"x"))

    now = eventually(lambda: told(7), seconds=SECONDS, what="the announced counts grow by 7")
    assert now.inference_stats.success.count == 7
    (direct,) = triton.ask("ModelStatistics", request).model_stats
    assert now.last_inference == direct.last_inference


def test_statistics_of_all_models_are_told_at_once(gateway: Client) -> None:
    told = gateway.ask("ModelStatistics", oip.ModelStatisticsRequest()).model_stats

    assert [each.name for each in told] == MODELS


def _rows(index: Message) -> list[tuple[str, str, str, str]]:
    return sorted((each.name, each.version, each.state, each.reason) for each in index.models)
