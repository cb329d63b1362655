"""How a benchmark ends that fails."""

import asyncio
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.children import ChildFailedError
from benchmarks.command import measured, run_to_end
from benchmarks.hotspots import _within


async def fail() -> None:
    raise ChildFailedError("py-spy gave no samples")


def test_a_failure_out_of_a_task_group_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = Namespace(build=tmp_path, triton="a:1", headrace="b:1", key="k", pids={"triton": 1})

    async def work() -> int:
        async with measured(running, ["headrace"]), asyncio.TaskGroup() as group:
            group.create_task(fail())
        return 0

    assert run_to_end(work()) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "failed: py-spy gave no samples"


async def test_a_sampler_that_does_not_end_in_its_time_has_failed(tmp_path: Path) -> None:
    with pytest.raises(ChildFailedError, match="py-spy was not done after 0 s"):
        async with _within(0, "py-spy", tmp_path / "log"):
            await asyncio.Event().wait()
