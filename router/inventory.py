"""What the Triton beside this router has: asked again every second, told only where it changed."""

import asyncio
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.bus.topics import UnnameableModelError, request_topic
from headrace.bus.v1.announcement_pb2 import ModelVersion
from router.settings import TritonSettings, WindowSettings
from router.triton import SERVICE, Triton, TritonAwayError
from router.window import window_of

_MODELS_A_POLL = 10
"""How many models' configurations are read again each time, in turn: a reload behind our back is seen within seconds,
and a repository of hundreds costs no more than one of ten."""

READY = "READY"
UNKNOWN_MODEL = "Request for unknown model"
"""What Triton says of a model that is not loaded, with one code or another."""
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class LoadedModel:
    """What Triton says of one model."""

    topic: str
    versions: list[ModelVersion] = field(default_factory=list)
    window: int = 1

    @property
    def ready(self) -> bool:
        """Whether some version of it is ready."""
        return any(version.state == READY for version in self.versions)


@dataclass(frozen=True, slots=True)
class Server:
    """What Triton says of itself."""

    name: str = ""
    version: str = ""
    extensions: tuple[str, ...] = ()


class Inventory:
    """The last that Triton said. `changed` is called after every look that found something else."""

    def __init__(
        self,
        *,
        triton: Triton,
        settings: TritonSettings,
        windows: WindowSettings,
        pool: str,
        changed: Callable[[], None],
    ) -> None:
        self._triton = triton
        self._settings = settings
        self._windows = windows
        self._pool = pool
        self._changed = changed
        self._rotation = itertools.count()
        self._unnameable: set[str] = set()
        self._lock = asyncio.Lock()
        self.ready = False
        self.starts = 0
        """How often Triton has become ready: it has lost what was loaded into it each time."""
        self.server = Server()
        self.models: dict[str, LoadedModel] = {}
        self.statistics: dict[str, bytes] = {}
        """`ModelStatisticsResponse` by model, serialised."""

    async def keep(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._settings.poll_seconds)  # the pace of polling: Triton tells nothing by itself

    async def look(self) -> None:
        """Ask Triton once. An absent Triton is a finding, not an error."""
        async with self._lock:
            before = (self.ready, self.starts, self.server, self._fingerprint(), self.statistics)
            was_ready = self.ready
            try:
                await self._ask(fresh=not was_ready)
            except TritonAwayError as exc:
                _log.debug("Triton did not answer: %s", exc, extra={"event": "triton_silent", "why": str(exc)})
                # Slow to tell is not away; but one that has just started is not ready before it has told.
                self.ready = was_ready and await self._triton.ready()
            after = (self.ready, self.starts, self.server, self._fingerprint(), self.statistics)
            if before[0] != after[0]:
                word = "ready" if self.ready else "away or not ready"
                extra = {"event": "triton_state", "address": self._triton.address, "ready": self.ready}
                _log.info("Triton at %s is %s", self._triton.address, word, extra=extra)
            if before != after:
                self._changed()

    def _fingerprint(self) -> tuple[object, ...]:
        return tuple(
            (name, model.window, tuple(version.SerializeToString() for version in model.versions))
            for name, model in sorted(self.models.items())
        )

    async def _ask(self, *, fresh: bool) -> None:
        if not await self._triton.ready():
            self.ready = False
            return
        if fresh:
            server = await self._triton.server_metadata()
            self.server = Server(server.name, server.version, tuple(server.extensions))
        models = await self._ask_models(fresh=fresh)
        # Again: what a Triton that is on its way out says of its models does not count.
        self.ready = await self._triton.ready()
        if not self.ready:
            return
        self.models = models
        self.starts += fresh  # told last: whoever sees it finds the models of this start
        await self._ask_statistics()

    async def _ask_statistics(self) -> None:
        try:
            response = await self._triton.statistics()
        except TritonAwayError as exc:
            _log.debug("Triton did not count: %s", exc, extra={"event": "triton_silent", "why": str(exc)})
            return
        statistics: dict[str, list[bytes]] = {}
        for each in response.model_stats:
            entry = type(response)(model_stats=[each]).SerializeToString()
            statistics.setdefault(each.name, []).append(entry)
        # Repeated fields of concatenated messages add up, so this is one response a model.
        self.statistics = {name: b"".join(entries) for name, entries in statistics.items()}

    async def _ask_models(self, *, fresh: bool) -> dict[str, LoadedModel]:
        index: dict[str, list[ModelVersion]] = {}
        for entry in (await self._triton.repository_index()).models:
            version = ModelVersion(version=entry.version, state=entry.state, reason=entry.reason)
            index.setdefault(entry.name, []).append(version)
        models: dict[str, LoadedModel] = {}
        turn = next(self._rotation)
        for place, (name, versions) in enumerate(sorted(index.items())):
            topic = self._topic(name)
            if topic is None:
                continue
            due = (
                fresh
                or len(index) <= _MODELS_A_POLL
                or place // _MODELS_A_POLL == turn % -(-len(index) // _MODELS_A_POLL)
            )
            models[name] = await self._describe(name, topic, versions, due=due)
        return models

    async def _describe(self, name: str, topic: str, versions: list[ModelVersion], *, due: bool) -> LoadedModel:
        model = LoadedModel(topic, versions)
        known = self.models.get(name, model)
        described = {version.version: version for version in known.versions if version.config}
        for version in versions:
            if version.state != READY:
                continue
            before = described.get(version.version)
            if due or before is None:
                try:
                    config = await self._triton.model_config(name, version.version)
                    version.metadata = await self._triton.model_metadata(name, version.version)
                except TritonAwayError as exc:
                    if UNKNOWN_MODEL in str(exc):
                        before = None  # unloaded between the two questions: the next look tells
                    elif not await self._triton.ready():
                        raise
                else:
                    version.config = config.SerializeToString(deterministic=True)
                    model.window = window_of(config.config, self._windows)
                    continue
            if before is None:
                version.state = "UNAVAILABLE"
            else:
                version.metadata, version.config = before.metadata, before.config
                model.window = known.window
        return model

    def _topic(self, model: str) -> str | None:
        try:
            return request_topic(self._pool, "interactive", model)
        except UnnameableModelError as exc:
            if model not in self._unnameable:
                self._unnameable.add(model)
                extra = {"event": "model_unnameable", "model": model, "why": str(exc)}
                _log.error("a model can't be offered: %s", exc, extra=extra)
            return None


LOAD = SERVICE + "RepositoryModelLoad"
UNLOAD = SERVICE + "RepositoryModelUnload"
ADMIN_METHODS = frozenset({LOAD, UNLOAD, SERVICE + "TraceSetting", SERVICE + "LogSettings"})
