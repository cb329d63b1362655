"""What `headrace up` does beside its children: fetching, describing, and what it says meanwhile."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.local import guard, jars, plan, stack, state
from headrace.local.options import UpOptions
from headrace.local.ports import FreePorts
from headrace.local.stack import Ready
from headrace.local.supervisor import ComponentFailedError, NotStartableError, Standing, State


class Told:
    """Everything that was said."""

    def __init__(self) -> None:
        self.changes: list[Standing] = []
        self.notes: list[str] = []
        self.fetched: list[tuple[int, int]] = []
        self.news = asyncio.Event()

    def change(self, standing: Standing) -> None:
        self.changes.append(standing)

    def fetching(self, done: int, total: int) -> None:
        self.fetched.append((done, total))

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.news.set()

    def ready(self, ready: Ready) -> None: ...

    def stopping(self, *, hurried: bool) -> None: ...


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def made(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> stack._Stack:
    """A stack that nothing was started of; its downloads go to a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    free = FreePorts("127.0.0.1")
    options = UpOptions(
        state_dir=tmp_path,
        triton=("127.0.0.1:1",),
        grpc_port=free.take(),
        http_port=free.take(),
        admin_port=free.take(),
    )
    return stack._Stack(options, plan.make_plan(options), tmp_path, told, 0.0)


JGO = """
import os, pathlib, sys

if os.path.exists({pipe!r}):
    with open({pipe!r}, "w") as pipe:
        pipe.write(f"{{os.getpid()}} {{os.environ.get({mark!r})}}")
    with open({pipe!r} + ".go") as go:
        go.readline()
print("a line that a library prints", flush=True)
print("1 2 3", flush=True)
sys.stderr.write("a warning\\n" * 20_000)

class MavenContext:
    def __init__(self, repo_cache, timeout):
        self.jar = repo_cache.with_suffix(".jar")

    def project(self, group, artifact):
        return self

    def at_version(self, version):
        return self

    def artifact(self):
        return self

    def resolve(self):
        self.jar.write_text("not what was pinned")
        return self.jar
"""


@pytest.fixture
def pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a stand-in for the library that fetches says who it is, if this is a pipe; then it waits for `.go`."""
    pipe = tmp_path / "pipe"
    (tmp_path / "path" / "jgo").mkdir(parents=True)
    (tmp_path / "path" / "jgo" / "__init__.py").touch()
    code = JGO.format(pipe=str(pipe), mark=guard.MARK_VARIABLE)
    (tmp_path / "path" / "jgo" / "maven.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
    yield pipe
    guard.kill_marked(lambda mark: mark.startswith(f"{tmp_path}#"))


@pytest.mark.usefixtures("pipe")
async def test_what_a_library_prints_is_no_progress_and_holds_up_nothing(made: stack._Stack, told: Told) -> None:
    """The failure is told in the fetcher's own last words."""
    with pytest.raises(ComponentFailedError, match=r"^the broker can't be installed: .*\.jar is not what was expected"):
        await made._fetch_jars()

    assert told.fetched == []


async def test_a_fetch_carries_the_stacks_mark_and_is_gone_when_the_start_is_broken_off(
    made: stack._Stack, pipe: Path
) -> None:
    for path in (pipe, f"{pipe}.go"):
        os.mkfifo(path)
    with open(f"{pipe}.go", "r+b", buffering=0) as go:  # noqa: ASYNC230, PTH123  as a pipe, it does not block
        fetch = asyncio.create_task(made._fetch_jars())
        pid, mark = (await asyncio.to_thread(pipe.read_text)).split(" ", 1)

        fetch.cancel()
        go.write(b"\n")
        await asyncio.wait([fetch])

    assert fetch.cancelled()
    assert mark == made._mark
    assert state.start_time(int(pid)) is None
    assert list(jars.jar_folder(made._state_dir / "cache" / "headrace").iterdir()) == []


async def test_a_full_disk_is_a_note_and_no_reason_to_stop(
    made: stack._Stack, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "describe", full)

    assert made._describe().pid == os.getpid()
    assert told.notes == [f"can't write to {made._state_dir}: No space left on device"]


@pytest.mark.parametrize(("standing", "said"), [(State.STARTING, "broker"), (State.READY, "a live router")])
async def test_what_a_start_still_waits_for_is_never_nothing(
    made: stack._Stack, told: Told, monkeypatch: pytest.MonkeyPatch, standing: State, said: str
) -> None:
    class Supervised:
        standings = (Standing(name="broker", state=standing), Standing(name="gateway-0", state=State.READY))

    monkeypatch.setattr(stack, "STILL_SECONDS", 0)
    saying = asyncio.create_task(made._say_what_is_missing(Supervised()))  # type: ignore[arg-type]  # all that is read
    await told.news.wait()
    saying.cancel()

    assert told.notes[0].startswith(f"not ready yet: {said}")


def test_jars_that_can_not_be_had_are_told_by_the_component() -> None:
    with pytest.raises(NotStartableError, match="broker: no network"), stack._named("broker"):
        raise jars.JarsError("no network")
