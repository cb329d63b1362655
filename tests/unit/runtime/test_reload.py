"""A file is read again when it changes, and a bad edit changes nothing."""

import asyncio
import logging
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

    async with asyncio.timeout(10):
        assert await used.get() == 22
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
