"""What the router finds out about the Triton beside it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest
from tritonclient.grpc import service_pb2 as oip

from router.inventory import UNKNOWN_MODEL, Inventory
from router.settings import TritonSettings, WindowSettings
from router.triton import Triton, TritonAwayError
from tests.integration.triton_stand_in import Context, Methods, Respond, serving

READY, UNAVAILABLE = "READY", "UNAVAILABLE"
CALL_SECONDS = 30.0
"""As long as a busy machine may take to answer; what is slow says itself that its time is over."""


class Repository:
    """A Triton's repository, as its RPCs tell of it."""

    def __init__(self) -> None:
        self.ready = True
        self.dead = False
        self.models: dict[tuple[str, str], tuple[str, str]] = {}
        self.batch_sizes: Counter[str] = Counter()
        self.counted: list[tuple[str, str, int]] = []
        self.asked: Counter[str] = Counter()
        self.unloaded_meanwhile: set[str] = set()
        self.slow: set[str] = set()
        """Methods, and models asked for their config, whose answer does not come in the caller's time."""
        self.leaving_at: str | None = None
        """The method at which Triton begins to stop: it unloads its models, and says that it is not ready."""
        self.dying_at: str | None = None
        """The method at which Triton dies."""

    def methods(self) -> Methods:
        methods = {
            "ServerReady": self._server_ready,
            "ServerMetadata": self._server_metadata,
            "RepositoryIndex": self._index,
            "ModelConfig": self._config,
            "ModelMetadata": self._metadata,
            "ModelStatistics": self._statistics,
        }
        return {name: self._or_trouble(name, respond) for name, respond in methods.items()}

    def _or_trouble(self, name: str, respond: Respond) -> Respond:
        async def answer(request: bytes, context: Context) -> bytes:
            self.dead |= name == self.dying_at
            if name == self.leaving_at:
                self.ready, self.unloaded_meanwhile = False, {model for model, _ in self.models}
            if self.dead:
                await context.abort(14, "Socket closed")  # type: ignore[arg-type]
            if name in self.slow:
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            return await respond(request, context)

        return answer

    async def _server_ready(self, _: bytes, __: Context) -> bytes:
        return bytes(oip.ServerReadyResponse(ready=self.ready).SerializeToString())

    async def _server_metadata(self, _: bytes, __: Context) -> bytes:
        self.asked["server"] += 1
        said = oip.ServerMetadataResponse(name="triton", version="2.51.0", extensions=["statistics"])
        return bytes(said.SerializeToString())

    async def _index(self, _: bytes, __: Context) -> bytes:
        index = oip.RepositoryIndexResponse()
        for (name, version), (state, reason) in self.models.items():
            index.models.add(name=name, version=version, state=state, reason=reason)
        return bytes(index.SerializeToString())

    async def _config(self, request: bytes, context: Context) -> bytes:
        name = oip.ModelConfigRequest.FromString(request).name
        self.asked[name] += 1
        if name in self.unloaded_meanwhile:
            await context.abort(14, f"Request for unknown model: '{name}' version 1 is not at ready state")  # type: ignore[arg-type]
        if name in self.slow:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        response = oip.ModelConfigResponse()
        response.config.name = name
        response.config.max_batch_size = self.batch_sizes[name]
        return bytes(response.SerializeToString())

    async def _metadata(self, request: bytes, _: Context) -> bytes:
        name = oip.ModelMetadataRequest.FromString(request).name
        return bytes(oip.ModelMetadataResponse(name=name, platform="python").SerializeToString())

    async def _statistics(self, _: bytes, __: Context) -> bytes:
        response = oip.ModelStatisticsResponse()
        for name, version, count in self.counted:
            response.model_stats.add(name=name, version=version, inference_count=count)
        return bytes(response.SerializeToString())


@pytest.fixture
def repository() -> Repository:
    return Repository()


class Looked:
    """An inventory, and how often it told of a change."""

    def __init__(self, address: str) -> None:
        self.changes = 0
        self.triton = Triton(address, max_message_bytes=1 << 20, call_seconds=CALL_SECONDS)
        self.inventory = Inventory(
            triton=self.triton,
            settings=TritonSettings(address=address),
            windows=WindowSettings(minimum=4),
            pool="default",
            changed=self._changed,
        )

    def _changed(self) -> None:
        self.changes += 1

    async def look(self) -> int:
        """Look once. Returns how many changes were told for it."""
        before = self.changes
        await self.inventory.look()
        return self.changes - before


@pytest.fixture
async def looked(repository: Repository) -> AsyncIterator[Looked]:
    async with serving(repository.methods()) as address:
        made = Looked(address)
        async with made.triton:
            yield made


async def test_models_are_found_with_their_versions_windows_and_topics(repository: Repository, looked: Looked) -> None:
    repository.models = {
        ("simple", "1"): (READY, ""),
        ("simple", "2"): (UNAVAILABLE, "unloaded"),
        ("broken", ""): (UNAVAILABLE, "no such file"),
    }
    repository.batch_sizes["simple"] = 16

    assert await looked.look() == 1

    found = looked.inventory
    assert found.ready
    assert (found.server.name, found.server.version, found.server.extensions) == ("triton", "2.51.0", ("statistics",))
    assert {name: model.ready for name, model in found.models.items()} == {"simple": True, "broken": False}
    assert found.models["simple"].topic == "headrace.default.interactive.simple"
    assert found.models["simple"].window == 32
    first, second = found.models["simple"].versions
    assert oip.ModelMetadataResponse.FromString(first.metadata).platform == "python"
    assert oip.ModelConfigResponse.FromString(first.config).config.max_batch_size == 16
    assert (second.state, second.reason, second.config) == (UNAVAILABLE, "unloaded", b"")


async def test_only_a_difference_is_told(repository: Repository, looked: Looked) -> None:
    repository.models = {("simple", "1"): (READY, "")}
    assert [await looked.look() for _ in range(3)] == [1, 0, 0]

    repository.batch_sizes["simple"] = 64  # reloaded behind our back
    assert [await looked.look() for _ in range(2)] == [1, 0]
    repository.counted = [("simple", "1", 5)]
    assert [await looked.look() for _ in range(2)] == [1, 0]
    repository.models = {}
    assert [await looked.look() for _ in range(2)] == [1, 0]


async def test_a_large_repository_is_read_again_in_turn_and_all_of_it_within_a_round(
    repository: Repository, looked: Looked
) -> None:
    repository.models = {(f"m{number:03}", "1"): (READY, "") for number in range(35)}
    await looked.look()
    assert repository.asked["m000"] == repository.asked["m034"] == 1

    before = repository.asked.copy()
    await looked.look()
    assert (repository.asked - before).total() <= 10

    for _ in range(3):
        await looked.look()
    assert all(repository.asked[f"m{number:03}"] >= 2 for number in range(35))


async def test_a_triton_that_is_away_keeps_its_models_and_is_new_when_it_is_back(repository: Repository) -> None:
    repository.models = {("simple", "1"): (READY, "")}
    async with serving(repository.methods()) as address:
        looked = Looked(address)
        async with looked.triton:
            await looked.look()
            repository.ready = False
            assert await looked.look() == 1
            assert not looked.inventory.ready
            assert looked.inventory.models.keys() == {"simple"}

            repository.ready = True
            assert await looked.look() == 1
            assert looked.inventory.starts == 2
            assert repository.asked["server"] == 2


async def test_a_triton_that_does_not_answer_is_a_finding_and_no_error() -> None:
    async with serving({}) as address:
        pass
    looked = Looked(address)
    async with looked.triton:
        await looked.look()
        assert not looked.inventory.ready
        assert looked.inventory.models == {}


async def test_a_model_that_is_unloaded_between_two_questions_is_not_ready(
    repository: Repository, looked: Looked
) -> None:
    repository.models = {("simple", "1"): (READY, ""), ("other", "1"): (READY, "")}
    repository.unloaded_meanwhile = {"simple"}

    await looked.look()

    assert {name: model.ready for name, model in looked.inventory.models.items()} == {"simple": False, "other": True}


async def test_a_model_that_triton_does_not_know_any_more_is_not_ready(
    repository: Repository, looked: Looked, triton_address: str
) -> None:
    """Triton says so in a text, with codes that mean other things as well: this is the real one's."""
    repository.models = {("simple", "1"): (READY, "")}
    await looked.look()
    async with Triton(triton_address, max_message_bytes=1 << 20, call_seconds=CALL_SECONDS) as real:
        with pytest.raises(TritonAwayError, match=UNKNOWN_MODEL):
            await real.model_config("absent", "")

    repository.unloaded_meanwhile = {"simple"}
    await looked.look()

    assert looked.inventory.ready
    assert not looked.inventory.models["simple"].ready


@pytest.mark.parametrize("method", ["RepositoryIndex", "ModelConfig", "ModelMetadata"])
@pytest.mark.parametrize("end", ["leaving_at", "dying_at"])
async def test_a_triton_that_goes_between_two_questions_keeps_its_models(
    repository: Repository, looked: Looked, end: str, method: str
) -> None:
    """As one that goes between two looks: nobody gives up its partitions, or forgets what its models are like."""
    repository.models = {("simple", "1"): (READY, ""), ("other", "1"): (READY, "")}
    await looked.look()
    before = looked.inventory.models

    setattr(repository, end, method)
    assert await looked.look() == 1

    assert not looked.inventory.ready
    assert looked.inventory.models == before


@pytest.mark.parametrize("method", ["RepositoryIndex", "ModelConfig", "ModelMetadata", "ModelStatistics", "simple"])
async def test_a_triton_that_is_slow_to_tell_of_its_models_is_not_away(repository: Repository, method: str) -> None:
    """What it said before stands: only where it does not say that it is ready are its calls held."""
    repository.models = {("simple", "1"): (READY, ""), ("other", "1"): (READY, "")}
    repository.counted = [("simple", "1", 5)]
    async with serving(repository.methods()) as address:
        looked = Looked(address)
        async with looked.triton:
            await looked.look()
            before, counted = looked.inventory.models, looked.inventory.statistics
            repository.slow = {method}
            repository.batch_sizes["other"] = 64

            await looked.look()

            assert looked.inventory.ready
            assert looked.inventory.starts == 1
            assert looked.inventory.models["simple"] == before["simple"]
            assert looked.inventory.statistics == counted
            if method == "simple":
                assert looked.inventory.models["other"].window == 128


async def test_a_triton_that_starts_and_is_slow_to_count_is_ready(repository: Repository) -> None:
    repository.models = {("simple", "1"): (READY, "")}
    repository.slow = {"ModelStatistics"}
    async with serving(repository.methods()) as address:
        looked = Looked(address)
        async with looked.triton:
            assert [await looked.look() for _ in range(2)] == [1, 0]

    assert looked.inventory.ready
    assert looked.inventory.starts == 1
    assert looked.inventory.models["simple"].ready


async def test_the_statistics_of_all_versions_of_a_model_are_one_message(
    repository: Repository, looked: Looked
) -> None:
    repository.counted = [("a", "1", 1), ("b", "1", 2), ("a", "2", 3)]

    await looked.look()

    said = {name: oip.ModelStatisticsResponse.FromString(each) for name, each in looked.inventory.statistics.items()}
    assert [(each.version, each.inference_count) for each in said["a"].model_stats] == [("1", 1), ("2", 3)]
    assert [each.inference_count for each in said["b"].model_stats] == [2]


async def test_a_model_whose_name_makes_no_topic_is_left_out_and_said_once(
    repository: Repository, looked: Looked, caplog: pytest.LogCaptureFixture
) -> None:
    repository.models = {("x" * 240, "1"): (READY, ""), ("simple", "1"): (READY, "")}
    for _ in range(3):
        await looked.look()

    assert looked.inventory.models.keys() == {"simple"}
    assert [getattr(record, "event", "") for record in caplog.records].count("model_unnameable") == 1


async def test_two_looks_at_once_do_not_mix(repository: Repository, looked: Looked) -> None:
    repository.models = {("simple", "1"): (READY, "")}

    await asyncio.gather(looked.look(), looked.look(), looked.look())

    assert looked.changes == 1
    assert looked.inventory.starts == 1
