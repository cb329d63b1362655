"""A file is read again when it changes, and a bad edit changes nothing."""

import asyncio
import gc
import logging
import sys
import threading
from pathlib import Path

import pytest

from headrace.runtime.reload import ReloadedFile
from headrace.runtime.settings import SettingsError


def number(path: Path) -> int:
    text = path.read_text()
    if not text.isdecimal():
        raise SettingsError(f"{path.name}: not a number\n{path.name}: try again")
    return int(text)


@pytest.fixture
def used() -> list[int]:
    return []


@pytest.fixture
def watched(tmp_path: Path, used: list[int]) -> ReloadedFile[int]:
    (tmp_path / "file").write_text("1")
    return ReloadedFile(tmp_path / "file", what="number", read=number, use=used.append)


async def test_what_is_there_is_used_at_once_and_a_change_when_it_comes(
    watched: ReloadedFile[int], used: list[int], tmp_path: Path
) -> None:
    await watched.look()
    assert used == [1]

    (tmp_path / "file").write_text("22")
    await watched.look()
    await watched.look()
    assert used == [1, 22]


async def test_a_file_that_another_takes_the_place_of_has_changed(
    watched: ReloadedFile[int], used: list[int], tmp_path: Path
) -> None:
    """As a ConfigMap does, and editors that write a new file: size and time may be the same."""
    (tmp_path / "other").write_text("2")
    (tmp_path / "other").replace(tmp_path / "file")

    await watched.look()

    assert used == [1, 2]


async def test_a_bad_edit_is_told_once_and_the_next_good_one_used(
    watched: ReloadedFile[int], used: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for text in ("bad", None, "333"):
        if text is None:
            (tmp_path / "file").unlink()
        else:
            (tmp_path / "file").write_text(text)
        with caplog.at_level(logging.INFO, "headrace.runtime.reload"):
            await watched.look()
            await watched.look()

    assert used == [1, 333]
    events = [(record.levelname, vars(record)["event"]) for record in caplog.records]
    assert events == [("ERROR", "file_rejected"), ("ERROR", "file_rejected"), ("INFO", "file_changed")]
    assert "file: not a number; file: try again" in caplog.text


def test_a_bad_file_at_the_start_is_an_error(tmp_path: Path, used: list[int]) -> None:
    (tmp_path / "file").write_text("bad")

    with pytest.raises(SettingsError):
        ReloadedFile(tmp_path / "file", what="number", read=number, use=used.append)
    assert used == []


async def test_it_is_watched_until_cancelled(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("1")
    used: asyncio.Queue[int] = asyncio.Queue()
    watched = ReloadedFile(tmp_path / "file", what="number", read=number, use=used.put_nowait)
    watching = asyncio.create_task(watched.keep())
    assert await used.get() == 1

    (tmp_path / "file").write_text("22")

    async with asyncio.timeout(30):
        assert await used.get() == 22
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


async def test_two_that_are_read_at_once_leave_the_process_as_it_was(tmp_path: Path) -> None:
    """The first one in is the first one out: what it changed must not be taken for what was there before."""
    before = (sys.getswitchinterval(), gc.isenabled())
    first_is_in, second_is_done = threading.Event(), threading.Event()

    def slow(path: Path) -> str:
        text = path.read_text()
        if text == "changed a":
            first_is_in.set()
            second_is_done.wait(5)
        elif text == "changed b":
            first_is_in.wait(5)
            second_is_done.set()
        return text

    watched = []
    for name in "ab":
        (tmp_path / name).write_text("first")
        watched.append(ReloadedFile(tmp_path / name, what=name, read=slow, use=lambda _: None))
        (tmp_path / name).write_text(f"changed {name}")
    await asyncio.gather(*(each.look() for each in watched))

    assert sys.getswitchinterval() == pytest.approx(before[0])
    assert gc.isenabled() is before[1]


async def test_what_could_not_be_read_for_want_of_something_is_read_when_it_is_there(
    tmp_path: Path, used: list[int]
) -> None:
    """A revocation must not be lost to a moment without file descriptors."""
    (tmp_path / "file").write_text("1")
    failing = [OSError(24, "Too many open files")]

    def read(path: Path) -> int:
        if failing and path.read_text() == "22":
            raise failing.pop()
        return number(path)

    watched = ReloadedFile(tmp_path / "file", what="number", read=read, use=used.append)
    (tmp_path / "file").write_text("22")
    await watched.look()
    await watched.look()

    assert used == [1, 22]


async def test_whatever_a_reader_fails_with_ends_nothing(tmp_path: Path, used: list[int]) -> None:
    (tmp_path / "file").write_text("1")

    def read(path: Path) -> int:
        if path.read_text() == "bad":
            raise KeyError("maybe")
        return number(path)

    watched = ReloadedFile(tmp_path / "file", what="number", read=read, use=used.append)
    (tmp_path / "file").write_text("bad")
    await watched.look()
    (tmp_path / "file").write_text("333")
    await watched.look()

    assert used == [1, 333]
