"""What the gateway answers from its registry."""

import pytest
from tritonclient.grpc import service_pb2 as oip

from gateway.catalog import NOT_OFFERED, SERVICE, Catalog, handlers
from gateway.errors import (
    ModelNotReady,
    ModelUnknown,
    ModelVersionInvalid,
    ModelVersionUnknown,
    NoLiveRouter,
    RepositoryNameUnsupported,
)
from gateway.identity import Caller
from headrace.bus.protocols import RouterKey
from headrace.bus.v1.announcement_pb2 import ROUTER_STATE_SERVER_AWAY
from tests.unit.gateway.admitting import admitting
from tests.unit.gateway.announcing import description, heartbeat, registry, statistics, version

A, B = RouterKey("a", 1), RouterKey("b", 2)


@pytest.fixture
def catalog() -> Catalog:
    """`simple` is ready in versions 1 and 10 and was not loaded in 2, `gone` has no live router, `off` is unloaded."""
    return Catalog(
        registry(
            heartbeat(A, extensions=("classification", "model_repository", "system_shared_memory")),
            heartbeat(B, extensions=("model_repository", "cuda_shared_memory", "classification", "trace")),
            description(A, versions=(version("1"), version("2", "UNAVAILABLE", "broken"))),
            description(B, versions=(version("10"),)),
            description(RouterKey("dead", 3), model="gone", versions=(version("7", model="gone"),)),
            description(A, model="off", versions=(version("", "UNAVAILABLE", "unloaded"),)),
            attached=(A, B),
        )
    )


def test_live_is_whoever_answers() -> None:
    assert Catalog(registry()).server_live(oip.ServerLiveRequest()).live


@pytest.mark.parametrize(
    ("catalog", "ready"),
    [
        (Catalog(registry(heartbeat(A), attached=(A,))), True),
        (Catalog(registry(heartbeat(A))), False),
        (Catalog(registry(heartbeat(A, state=ROUTER_STATE_SERVER_AWAY), attached=(A,))), False),
        (Catalog(registry()), False),
        (Catalog(registry(), pool_may_sleep=True), True),
    ],
)
def test_ready_is_who_takes_calls(catalog: Catalog, ready: bool) -> None:
    assert catalog.server_ready(oip.ServerReadyRequest()).ready == ready


def test_the_server_is_triton_with_what_all_of_them_can_do_from_afar(catalog: Catalog) -> None:
    metadata = catalog.server_metadata(oip.ServerMetadataRequest())

    assert (metadata.name, metadata.version) == ("triton", "2.51.0")
    assert metadata.extensions == ["classification", "model_repository"]


def test_without_a_live_router_the_server_is_the_last_that_was_heard_of() -> None:
    assert Catalog(registry(heartbeat(A))).server_metadata(oip.ServerMetadataRequest()).version == "2.51.0"
    assert Catalog(registry()).server_metadata(oip.ServerMetadataRequest()).name == "triton"


@pytest.mark.parametrize(
    ("name", "wanted", "ready"),
    [
        ("simple", "", True),
        ("simple", "1", True),
        ("simple", "01", True),
        ("simple", "10", True),
        ("simple", "2", False),
        ("simple", "3", False),
        ("gone", "", False),
        ("gone", "7", False),
        ("off", "", False),
        ("nothing", "", False),
    ],
)
def test_a_model_is_ready_when_a_call_of_it_would_run(catalog: Catalog, name: str, wanted: str, ready: bool) -> None:
    assert catalog.model_ready(oip.ModelReadyRequest(name=name, version=wanted)).ready == ready


@pytest.mark.parametrize("wanted", ["one", "-1", "0", "1.0", " 1", "٣", "9223372036854775808", "9" * 5000])
def test_a_version_is_a_number(catalog: Catalog, wanted: str) -> None:
    with pytest.raises(ModelVersionInvalid):
        catalog.model_ready(oip.ModelReadyRequest(name="simple", version=wanted))
    with pytest.raises(ModelVersionInvalid):
        catalog.model_statistics(oip.ModelStatisticsRequest(name="simple", version=wanted))


def test_metadata_has_all_ready_versions_of_the_pool(catalog: Catalog) -> None:
    metadata = catalog.model_metadata(oip.ModelMetadataRequest(name="simple", version="1"))

    assert (metadata.name, metadata.platform, metadata.versions) == ("simple", "python", ["1", "10"])


def test_without_a_version_the_highest_ready_one_answers() -> None:
    old, new = version("2", model="old"), version("10", model="new")
    catalog = Catalog(registry(heartbeat(A), description(A, versions=(old, new)), attached=(A,)))

    assert catalog.model_metadata(oip.ModelMetadataRequest(name="simple")).name == "new"
    assert catalog.model_config(oip.ModelConfigRequest(name="simple")).config.name == "new"
    assert catalog.model_config(oip.ModelConfigRequest(name="simple", version="2")).config.name == "old"


def test_a_model_whose_routers_are_gone_is_still_described(catalog: Catalog) -> None:
    assert catalog.model_metadata(oip.ModelMetadataRequest(name="gone")).versions == ["7"]
    assert catalog.model_config(oip.ModelConfigRequest(name="gone")).config.max_batch_size == 8


def test_what_is_not_known_is_refused_in_tritons_words(catalog: Catalog) -> None:
    with pytest.raises(ModelUnknown, match=r"^Request for unknown model: 'nothing' is not found"):
        catalog.model_metadata(oip.ModelMetadataRequest(name="nothing"))
    with pytest.raises(ModelVersionUnknown, match=r"^Request for unknown model: 'simple' version 3 is not found"):
        catalog.model_config(oip.ModelConfigRequest(name="simple", version="3"))
    with pytest.raises(ModelUnknown):
        catalog.model_statistics(oip.ModelStatisticsRequest(name="nothing"))
    with pytest.raises(ModelVersionUnknown):
        catalog.model_statistics(oip.ModelStatisticsRequest(name="simple", version="3"))


def test_what_is_not_loaded_can_not_be_described(catalog: Catalog) -> None:
    with pytest.raises(ModelNotReady):
        catalog.model_metadata(oip.ModelMetadataRequest(name="off"))
    with pytest.raises(ModelNotReady):
        catalog.model_config(oip.ModelConfigRequest(name="simple", version="2"))


def test_what_was_never_described_and_is_gone_says_so() -> None:
    catalog = Catalog(registry(description(A, versions=())))

    with pytest.raises(NoLiveRouter):
        catalog.model_metadata(oip.ModelMetadataRequest(name="simple"))


def test_statistics_are_summed_over_routers() -> None:
    def counted(version: str, count: int, model: str = "simple") -> oip.ModelStatistics:
        return oip.ModelStatistics(name=model, version=version, inference_count=count)

    catalog = Catalog(
        registry(
            heartbeat(A),
            heartbeat(B),
            description(A, versions=(version("1"), version("2"))),
            description(B),
            description(A, model="also"),
            statistics(A, counted("1", 5), counted("2", 7)),
            statistics(B, counted("1", 10)),
            statistics(A, counted("1", 1, "also"), model="also"),
            statistics(RouterKey("dead", 3), counted("1", 1000)),
            attached=(A, B),
        )
    )

    def asked(name: str = "", wanted: str = "") -> list[tuple[str, str, int]]:
        response = catalog.model_statistics(oip.ModelStatisticsRequest(name=name, version=wanted))
        return [(each.name, each.version, each.inference_count) for each in response.model_stats]

    assert asked("simple") == [("simple", "1", 15), ("simple", "2", 7)]
    assert asked("simple", "1") == [("simple", "1", 15)]
    assert asked() == [("also", "1", 1), ("simple", "1", 15), ("simple", "2", 7)]


def test_the_index_has_every_version_with_its_state(catalog: Catalog) -> None:
    index = catalog.repository_index(oip.RepositoryIndexRequest())

    assert [(each.name, each.version, each.state, each.reason) for each in index.models] == [
        ("gone", "7", "UNAVAILABLE", "no live router serves the model"),
        ("off", "", "UNAVAILABLE", "unloaded"),
        ("simple", "1", "READY", ""),
        ("simple", "2", "UNAVAILABLE", "broken"),
        ("simple", "10", "READY", ""),
    ]


def test_the_index_of_what_is_ready(catalog: Catalog) -> None:
    index = catalog.repository_index(oip.RepositoryIndexRequest(ready=True))

    assert [(each.name, each.version) for each in index.models] == [("simple", "1"), ("simple", "10")]


def test_there_is_one_repository_without_a_name(catalog: Catalog) -> None:
    with pytest.raises(RepositoryNameUnsupported):
        catalog.repository_index(oip.RepositoryIndexRequest(repository_name="r"))


def test_every_method_of_the_protocol_has_someone_to_answer_it(catalog: Catalog) -> None:
    """What is not here is ModelInfer and administration."""
    methods = {method.name for method in oip.DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]].methods}
    ours = handlers(catalog, lambda _: Caller("t", "k"), admitting()).keys()

    assert methods - ours == {
        "ModelInfer",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "TraceSetting",
        "LogSettings",
    }
    assert ours <= methods
    assert NOT_OFFERED.keys() <= ours
